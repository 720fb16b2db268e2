//! Refusals as gRPC statuses with google.rpc details, so that programs need not read sentences.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::core::admin::AdminError;

const DOMAIN: &str = "kvd";

/// A status with ErrorInfo, and with the remedy in its metadata.
pub(super) fn refusal(code: Code, reason: &str, message: impl Into<String>, remedy: Option<&str>) -> Status {
    let metadata: HashMap<String, String> =
        remedy.map(|remedy| ("remedy".to_owned(), remedy.to_owned())).into_iter().collect();
    Status::with_error_details(code, message, ErrorDetails::with_error_info(reason, DOMAIN, metadata))
}

/// An argument that cannot be taken.
pub(super) fn bad_field(field: &str, description: String) -> Status {
    let mut details = ErrorDetails::with_bad_request_violation(field, &description);
    details.set_error_info("BAD_REQUEST", DOMAIN, HashMap::new());
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {description}"), details)
}

/// What the core says, as a status.
pub(super) fn of_core(error: AdminError) -> Status {
    match error {
        AdminError::Busy => {
            let mut details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
            details.set_error_info("BUSY", DOMAIN, HashMap::new());
            Status::with_error_details(Code::ResourceExhausted, error.to_string(), details)
        }
        AdminError::Stopping => {
            refusal(Code::Unavailable, "STOPPING", error.to_string(), Some("ask again when the next daemon is up"))
        }
        AdminError::NotFound(_) => refusal(Code::NotFound, "NOT_FOUND", error.to_string(), None),
        AdminError::BadRequest(_) => refusal(Code::InvalidArgument, "BAD_REQUEST", error.to_string(), None),
    }
}

/// The core answered another question than the one asked.
pub(super) fn wrong_reply() -> Status {
    refusal(
        Code::Internal,
        "WRONG_REPLY",
        "the core gave an answer to another question",
        Some("this is a fault of kvd: report it"),
    )
}
