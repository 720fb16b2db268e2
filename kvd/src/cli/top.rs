//! `kvd top`: the daemon, refreshed.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::Connection;
use super::admin::Admin;
use super::exit::{Exit, Outcome};
use super::look;
use super::output::{Output, bytes};
use crate::service::proto;

/// `kvd top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    connection: Connection,
    /// Between two looks.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    interval: Duration,
    /// Stop after so many looks; without it, go on until interrupted.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

#[derive(Serialize)]
struct Look {
    status: proto::StatusResponse,
    devices: Vec<proto::DeviceStatus>,
}

/// Looks until interrupted; with `--json` one object a look.
///
/// # Errors
/// The daemon does not answer.
pub fn run(args: &TopArgs, output: Output) -> Outcome {
    let mut before: Option<Look> = None;
    let mut looks = 0;
    loop {
        let look = args.connection.run(async |mut admin: Admin| {
            let status = admin.status(proto::StatusRequest {}).await?.into_inner();
            let devices = admin.list_devices(proto::ListDevicesRequest {}).await?.into_inner().devices;
            Ok(Look { status, devices })
        })?;
        if !output.is_json() && io::stdout().is_terminal() {
            print!("\x1b[H\x1b[2J");
        }
        output.show(&look, |look| text(look, before.as_ref(), args.interval))?;
        looks += 1;
        if args.count.is_some_and(|count| looks >= count) {
            return Ok(Exit::Ok);
        }
        before = Some(look);
        std::thread::sleep(args.interval);
    }
}

fn text(look: &Look, before: Option<&Look>, interval: Duration) -> String {
    let mut text = look::status_text(&look.status);
    text.push_str("\n\n");
    text.push_str(&look::devices_text(&look.devices));
    if let Some(before) = before {
        let sum = |look: &Look, of: fn(&proto::DeviceStatus) -> u64| look.devices.iter().map(of).sum::<u64>();
        let flow = |of| (sum(look, of).saturating_sub(sum(before, of)) as f64 / interval.as_secs_f64()) as u64;
        let (read, written) = (flow(|device| device.read_bytes), flow(|device| device.written_bytes));
        text.push_str(&format!("\n\nnow: read {}/s, write {}/s", bytes(read), bytes(written)));
    }
    text
}
