//! Time that threads spend on processors, and threads that spend all they get.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::cli::exit::{Exit, Failure};

const BURNER: &str = "burner";

/// User and system time of all threads of this process, those of the kernel's io_uring pool included, burners not. Of
/// threads that are gone nothing is told: the sides start none that end before they are measured.
pub(super) fn cpu_time() -> Result<Duration, Failure> {
    let mut sum = Duration::ZERO;
    for entry in fs::read_dir("/proc/self/task")? {
        let task = entry?.path();
        // A thread may end between the listing and the look at it.
        let Ok(name) = fs::read_to_string(task.join("comm")) else { continue };
        let Ok(text) = fs::read_to_string(task.join("schedstat")) else { continue };
        if name.trim() != BURNER {
            let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok());
            let nanos = nanos.ok_or_else(|| Failure::new(Exit::Failure, "no schedstat in /proc/self/task"))?;
            sum += Duration::from_nanos(nanos);
        }
    }
    Ok(sum)
}

/// One thread per core that spins until this value is gone.
pub(super) struct Burners {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Burners {
    pub(super) fn start() -> Result<Burners, Failure> {
        let mut burners = Burners { stop: Arc::default(), threads: Vec::new() };
        for _ in 0..thread::available_parallelism()?.get() {
            let stop = burners.stop.clone();
            let spin = move || {
                // Relaxed: nothing is handed over.
                while !stop.load(Ordering::Relaxed) {
                    // Not a pause for the sibling: a neighbour at full load gives nothing away.
                    std::hint::black_box(());
                }
            };
            burners.threads.push(thread::Builder::new().name(BURNER.to_owned()).spawn(spin)?);
        }
        Ok(burners)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burners_cost_time_that_is_not_counted() {
        let before = cpu_time().unwrap();
        let burners = Burners::start().unwrap();
        thread::sleep(Duration::from_millis(50));
        drop(burners);
        let first = cpu_time().unwrap();
        assert!(first >= before);
        let mut sum = 0_u64;
        while cpu_time().unwrap() < first + Duration::from_millis(2) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(sum > 0);
    }
}
