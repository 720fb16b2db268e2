//! Engines that are killed while their device copies: what they held comes back, and no slot that they may still fill is another
//! one's before their device has ended.
//!
//! The engine is a rank of `kvd bench ranks`: a process of its own, with 64 MiB of blocks.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kvd_nixl::device::Device;
use kvd_tests::{Daemon, DaemonOptions, Scratch, ask_serving, skip};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

struct Engine {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Engine {
    fn start(scratch: &Scratch, instance: u8, place: &[&str]) -> Self {
        let mut command = Command::new(Daemon::program());
        command.args(["bench", "ranks", "--mib", "64", "--rank", "0/1"]).args(place);
        command.arg("--socket").arg(scratch.socket()).args(["--instance", &instance.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the engine has ended"))
    }

    fn do_all(&mut self, orders: &[String]) {
        for order in orders {
            self.order(order);
            assert_eq!(self.answer(), json!({"Done": 0}), "{order}");
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn an_engine_that_is_killed_while_its_device_copies_leaves_nothing_behind() {
    let mut places = vec![("twin", vec!["--twin"])];
    match Device::cuda(0) {
        Ok(_) => places.push(("gpu", Vec::new())),
        Err(error) => skip("engines killed on a GPU", &error.to_string()),
    }
    let cycles = if std::env::var("KVD_DEATHS").is_ok_and(|value| value == "1") { 100 } else { 3 };
    for (name, place) in places {
        let scratch = Scratch::new("gpu-engine-killed");
        // Four times what one stores: slots are given away again and again.
        let options = DaemonOptions::sized("320MiB", "64MiB").with("tiers.nvme.enabled", "false");
        let daemon = Daemon::start(&scratch, &options.with("lease.bytes_max", "320MiB"));
        let mut random = SmallRng::seed_from_u64(31);
        let mut witness = Engine::start(&scratch, 1, &place);
        let mut found = 0;
        for cycle in 1..=cycles {
            let (kept, torn) = (2 * cycle, 2 * cycle + 1);
            let what = format!("{name}, cycle {cycle}");
            let mut victim = Engine::start(&scratch, 2, &place);
            victim.do_all(&[format!("fill {kept}"), format!("store {kept}"), format!("fill {torn}")]);
            // In the middle of a store, or of a load.
            let storing = cycle % 2 == 0;
            victim.order(&if storing { format!("store {torn}") } else { format!("load {kept}") });
            std::thread::sleep(Duration::from_micros(random.random_range(0..15_000)));
            victim.kill();
            let killed = Instant::now();
            // Others take slots at once, among them those that the dead one was filling.
            witness.do_all(&[format!("fill {}", 1000 + cycle), format!("store {}", 1000 + cycle)]);
            witness.do_all(&["spoil".into(), format!("load {}", 1000 + cycle), format!("check {}", 1000 + cycle)]);
            // What the dead one had published is right, if it is still there.
            witness.do_all(&["spoil".into()]);
            witness.order(&format!("load {kept}"));
            if witness.answer() == json!({"Done": 0}) {
                witness.do_all(&[format!("check {kept}")]);
                found += 1;
            }
            while ask_serving(&scratch, &["status"])["leases"] != 0 {
                assert!(killed.elapsed() < Duration::from_secs(5), "{what}: leases are left");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        assert!(found > 0, "{name}: nothing of the dead was ever there");
        drop(witness.child.stdin.take());
        assert!(witness.child.wait().unwrap().success(), "{name}");
        assert_eq!(daemon.stop(), Some(0), "{name}");
    }
}
