//! A pool larger than the memory that the daemon's control group allows.

use std::fs;
use std::path::{Path, PathBuf};

use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine, skip};

/// A control group with a limit; removed with the value.
struct Group(PathBuf);

impl Group {
    /// In version 1 or 2, whichever can be written here.
    fn limited(bytes: u64) -> Result<Self, String> {
        let name = format!("kvd-test-{}", std::process::id());
        let mut failed = Vec::new();
        for (root, file) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let folder = Path::new(root).join(&name);
            if let Err(error) = fs::create_dir(&folder) {
                failed.push(format!("{}: {error}", folder.display()));
                continue;
            }
            let group = Self(folder);
            // A folder of the kernel's shows the file; where it is missing this is no control group of memory.
            match fs::File::options().write(true).open(group.0.join(file)).and_then(|mut limit| {
                use std::io::Write as _;
                limit.write_all(bytes.to_string().as_bytes())
            }) {
                Ok(()) => return Ok(group),
                Err(error) => failed.push(format!("{}: {error}", group.0.join(file).display())),
            }
        }
        Err(failed.join("; "))
    }

    /// What starts a program in it.
    fn wrapper(&self) -> Vec<String> {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display());
        vec!["sh".into(), "-c".into(), script]
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Empty once its daemon is reaped, which dropping the daemon does.
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_pool_beyond_the_groups_limit_is_refused_and_one_within_serves() {
    const LIMIT: u64 = 1 << 30;
    let group = match Group::limited(LIMIT) {
        Ok(group) => group,
        Err(why) => return skip("a pool larger than the cgroup allows", &why),
    };
    let scratch = Scratch::new("cgroup");
    let within = |options: DaemonOptions| DaemonOptions { wrapper: group.wrapper(), ..options };
    let (code, said) = Daemon::refused(&scratch, &within(DaemonOptions::sized("1GiB", "2GiB")));
    assert_eq!(code, Some(2), "{said}");
    for wanted in
        ["--set tiers.dram.capacity", "exceed the cgroup's memory limit of 1GiB", "remedy:", "\"512MiB\" or less"]
    {
        assert!(said.contains(wanted), "`{wanted}` is not in:\n{said}");
    }
    let daemon = Daemon::start(&scratch, &within(DaemonOptions::sized("128MiB", "256MiB")));
    let engine = TestEngine::connect(&scratch.socket(), 1, 65536, 16);
    assert_eq!(engine.store(1, 0, 16).granted, 16);
    assert_eq!(engine.check(1, 16).right, 16);
    drop(engine);
    assert_eq!(daemon.stop(), Some(0));
}
