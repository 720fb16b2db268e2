//! The metrics endpoint: one path, GET only, bounded in size, time and number of peers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Metrics;

/// A scraper's request has a few hundred bytes.
const REQUEST_BYTES_MAX: usize = 8 << 10;
const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(10);
const PEERS_MAX: usize = 16;
/// After accept has failed (no descriptors left), so that it does not fail in a circle.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers scrapes until the future is dropped.
pub async fn serve_http(listener: TcpListener, metrics: Arc<Metrics>) {
    let places = Arc::new(Semaphore::new(PEERS_MAX));
    loop {
        // A place first: who is over the bound waits in the kernel's queue.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            // A peer that is slow or gone concerns nobody else.
            let _ = tokio::time::timeout(EXCHANGE_TIME_MAX, exchange(stream, &metrics)).await;
            drop(place);
        });
    }
}

async fn exchange(mut stream: TcpStream, metrics: &Metrics) -> io::Result<()> {
    let mut request = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
        if request.windows(4).any(|end| end == b"\r\n\r\n") {
            break;
        }
        if request.len() > REQUEST_BYTES_MAX {
            return answer(&mut stream, "431 Request Header Fields Too Large", "the request is too long\n").await;
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/metrics")) => answer(&mut stream, "200 OK", &metrics.text()).await,
        (Some(b"GET"), Some(b"/")) => answer(&mut stream, "200 OK", "kvd: metrics are at /metrics\n").await,
        (Some(b"GET"), _) => answer(&mut stream, "404 Not Found", "only /metrics is here\n").await,
        _ => answer(&mut stream, "405 Method Not Allowed", "only GET is answered\n").await,
    }
}

async fn answer(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::super::MetricsFacts;
    use super::*;

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut reply = String::new();
        // An answer to a request that was not read to its end may be cut by a reset.
        let _ = stream.read_to_string(&mut reply).await;
        reply
    }

    #[tokio::test]
    async fn scrapes_are_answered_and_nothing_else_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let facts = MetricsFacts { version: "1".into(), epoch: 1, devices: Vec::new() };
        let metrics = Arc::new(Metrics::new(Arc::default(), facts));
        let server = tokio::spawn(serve_http(listener, metrics));
        let scrape = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(scrape.starts_with("HTTP/1.1 200 OK\r\n") && scrape.ends_with("# EOF\n"), "{scrape}");
        assert!(ask(address, "GET /secret HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        assert!(ask(address, "POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(2 * REQUEST_BYTES_MAX));
        assert!(!ask(address, &long).await.contains("200 OK"));
        server.abort();
    }
}
