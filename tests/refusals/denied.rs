//! Machines that deny io_uring or locked memory: the daemon serves all the same, from both tiers, and says what is missing.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine, skip};

const BLOCK: usize = 64 * 1024;
const CHAIN: u32 = 16;

/// Denies io_uring_setup (425 everywhere) with EPERM, as Docker's default profile does, then runs its arguments.
const WITHOUT_URING: &str = r#"
my %prctl = (x86_64 => 157, aarch64 => 167);
chomp(my $machine = `uname -m`);
my $number = $prctl{$machine} or exit 99;
# load the number; if it is 425: errno 1; else: allow
my $filter = join "", map { pack "SCCL", @$_ } [0x20,0,0,0], [0x15,0,1,425], [0x06,0,0,0x50001], [0x06,0,0,0x7fff0000];
my $program = pack "Sx![Q]P", 4, $filter;
exit 99 if syscall($number, 38, 1, 0, 0, 0) != 0;
exit 99 if syscall($number, 22, 2, $program, 0, 0) != 0;
exec { $ARGV[0] } @ARGV or exit 98;
"#;

fn without_uring() -> Vec<String> {
    vec!["perl".into(), "-e".into(), WITHOUT_URING.into(), "--".into()]
}

fn works(wrapper: &[String]) -> bool {
    let (first, rest) = wrapper.split_first().expect("a program");
    Command::new(first).args(rest).arg("true").status().is_ok_and(|status| status.success())
}

/// Stores, restarts without DRAM, and reads all of it from NVMe.
fn serves_from_both_tiers(scratch: &Scratch, options: &DaemonOptions) -> String {
    let daemon = Daemon::start(scratch, options);
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, CHAIN as usize);
    assert_eq!(engine.store(1, 0, CHAIN).granted, CHAIN, "{}", daemon.log());
    assert_eq!(engine.check(1, CHAIN).right, CHAIN, "{}", daemon.log());
    drop(engine);
    let said = daemon.log();
    assert_eq!(daemon.stop(), Some(0), "{said}");
    for entry in std::fs::read_dir(scratch.dram()).expect("the arena's folder").flatten() {
        std::fs::remove_file(entry.path()).expect("a file of the arena");
    }
    let daemon = Daemon::start(scratch, options);
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, CHAIN as usize);
    let checked = engine.check(1, CHAIN);
    assert_eq!((checked.right, checked.nvme), (CHAIN, CHAIN), "{checked:?}\n{}", daemon.log());
    said
}

#[test]
fn without_io_uring_auto_serves_with_threads_and_uring_is_refused() {
    let wrapper = without_uring();
    if !works(&wrapper) {
        return skip("no io_uring", "perl cannot install a seccomp filter here");
    }
    let scratch = Scratch::new("uring");
    let options = DaemonOptions { wrapper, ..DaemonOptions::sized("128MiB", "256MiB") };
    let (code, said) = Daemon::refused(&scratch, &options.clone().with("tiers.nvme.io", "uring"));
    assert_eq!(code, Some(2), "{said}");
    for wanted in ["--set tiers.nvme.io: tiers.nvme.io: io_uring is not allowed here", "remedy:", "\"auto\""] {
        assert!(said.contains(wanted), "`{wanted}` is not in:\n{said}");
    }
    let said = serves_from_both_tiers(&scratch, &options);
    assert!(said.contains("the NVMe tier works with threads"), "{said}");
}

#[test]
fn with_8_mib_of_locked_memory_an_unprivileged_daemon_serves() {
    let scratch = Scratch::new("memlock");
    let mut wrapper: Vec<String> = Vec::new();
    if rustix::process::geteuid().is_root() {
        let (user, group) = (rustix::fs::Uid::from_raw(65534), rustix::fs::Gid::from_raw(65534));
        for folder in [scratch.data(), scratch.dram()] {
            rustix::fs::chown(folder, Some(user), Some(group)).expect("root gives its folders away");
        }
        let setpriv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
        wrapper.extend(setpriv.map(String::from));
    }
    wrapper.extend(["prlimit", "--memlock=8388608"].map(String::from));
    if !works(&wrapper) {
        return skip("memlock 8 MiB", "setpriv or prlimit does not work here");
    }
    // The build folder may lie where only its owner gets: a copy in the daemon's own folder.
    let program = scratch.data().join("kvd");
    std::fs::copy(Daemon::program(), &program).expect("copied");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("ours");
    wrapper.extend(["sh".into(), "-c".into(), format!("exec {} \"$@\"", program.display())]);
    let options = DaemonOptions { wrapper, ..DaemonOptions::sized("128MiB", "256MiB") };
    let said = serves_from_both_tiers(&scratch, &options);
    assert!(said.contains("may be locked in memory"), "{said}");
}
