//! Goal: every fault that an operator may meet is found, with a remedy. Method: a healthy machine, one fact changed.

use kvd_nixl::device::DeviceError;

use super::*;
use crate::machine::fake::FakeMachine;
use crate::machine::{Entry, EntryKind, Filesystem, MemoryLimit, SocketState};
use crate::object::store::{Fault as StoreFault, ProbeError, Step};

const DATA: &str = "/home/kv/.local/state/kvd";

struct Fault {
    name: &'static str,
    seed: fn(&mut FakeMachine, &mut Sources),
    check: &'static str,
    severity: Severity,
    says: &'static str,
}

fn set(sources: &mut Sources, assignment: &str) {
    sources.assignments.push(assignment.to_owned());
}

fn filesystem(kind: &str, free_bytes: u64) -> Filesystem {
    Filesystem { kind: kind.into(), free_bytes, total_bytes: free_bytes, read_only: false }
}

fn folder(uid: u32, mode: u32) -> Entry {
    Entry { kind: EntryKind::Folder, uid, mode, bytes: 0, allocated_bytes: 0 }
}

fn bucket(sources: &mut Sources) {
    set(sources, "tiers.object.url=s3://kv-cache/llm");
}

const ERROR: Severity = Severity::Error;
const WARNING: Severity = Severity::Warning;

const FAULTS: &[Fault] = &[
    Fault {
        name: "io_uring forbidden",
        seed: |m, _| m.io_uring = Err("Operation not permitted"),
        check: "io_uring",
        severity: WARNING,
        says: "io_uring is forbidden here",
    },
    Fault {
        name: "io_uring forbidden but asked for",
        seed: |m, s| {
            m.io_uring = Err("Operation not permitted");
            set(s, "tiers.nvme.io=uring");
        },
        check: "io_uring",
        severity: ERROR,
        says: "io_uring is forbidden here",
    },
    Fault {
        name: "a GPU without its driver",
        seed: |m, _| {
            m.gpu = Err(DeviceError::NoDriver);
            let kind = EntryKind::Other;
            m.entries
                .insert("/dev/nvidiactl".into(), Entry { kind, uid: 0, mode: 0o666, bytes: 0, allocated_bytes: 0 });
        },
        check: "gpu",
        severity: WARNING,
        says: "libcuda.so.1 is not there",
    },
    Fault {
        name: "a driver without a GPU",
        seed: |m, _| m.gpu = Err(DeviceError::NoDevice { ordinal: 0, found: 0 }),
        check: "gpu",
        severity: WARNING,
        says: "there is no GPU 0: the driver shows 0",
    },
    Fault {
        name: "a driver that does not take the kernels",
        seed: |m, _| {
            let name = "CUDA_ERROR_UNSUPPORTED_PTX_VERSION".to_owned();
            m.gpu = Err(DeviceError::Driver { call: "cuModuleLoadData", code: 222, name });
        },
        check: "gpu",
        severity: WARNING,
        says: "cuModuleLoadData failed with CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    },
    Fault {
        name: "memlock 8 MiB",
        seed: |m, _| m.memlock_bytes = Some(8 << 20),
        check: "memlock",
        severity: WARNING,
        says: "8MiB may be locked",
    },
    Fault {
        name: "tmpfs too small",
        seed: |m, s| {
            m.filesystems.insert("/dev/shm".into(), filesystem("tmpfs", 64 << 20));
            set(s, "tiers.dram.path=/dev/shm/kvd");
            set(s, "tiers.dram.capacity=8GiB");
        },
        check: "dram room",
        severity: ERROR,
        says: "8GiB of pool, and 64MiB are free",
    },
    Fault {
        name: "cgroup v2 too small",
        seed: |m, s| {
            m.memory_limit = Some(MemoryLimit { bytes: 2 << 30, version: 2, file: "/sys/fs/cgroup/memory.max".into() });
            set(s, "tiers.dram.capacity=8GiB");
        },
        check: "cgroup memory",
        severity: ERROR,
        says: "cgroup v2",
    },
    Fault {
        name: "cgroup v1 too small",
        seed: |m, s| {
            m.memory_limit = Some(MemoryLimit {
                bytes: 2 << 30,
                version: 1,
                file: "/sys/fs/cgroup/memory/memory.limit_in_bytes".into(),
            });
            set(s, "tiers.dram.capacity=8GiB");
        },
        check: "cgroup memory",
        severity: ERROR,
        says: "cgroup v1",
    },
    Fault {
        name: "data folder open to others",
        seed: |m, _| {
            m.entries.insert(DATA.into(), folder(1000, 0o755));
        },
        check: "data folder",
        severity: ERROR,
        says: "can be entered by others (mode 0755)",
    },
    Fault {
        name: "data folder of another user",
        seed: |m, _| {
            m.entries.insert(DATA.into(), folder(0, 0o700));
        },
        check: "data folder",
        severity: ERROR,
        says: "belongs to user 0",
    },
    Fault {
        name: "data folder not writable",
        seed: |m, _| m.read_only.push("/home".into()),
        check: "data folder",
        severity: ERROR,
        says: "cannot be made by user 1000",
    },
    Fault {
        name: "overlayfs",
        seed: |m, _| {
            m.filesystems.insert("/home".into(), filesystem("overlayfs", 400 << 30));
        },
        check: "data file system",
        severity: WARNING,
        says: "on overlayfs",
    },
    Fault {
        name: "NFS",
        seed: |m, _| {
            m.filesystems.insert("/home".into(), filesystem("nfs", 400 << 30));
        },
        check: "data file system",
        severity: ERROR,
        says: "on nfs",
    },
    Fault {
        name: "NVMe tier in memory",
        seed: |m, _| {
            m.filesystems.insert("/home".into(), filesystem("tmpfs", 400 << 30));
        },
        check: "data file system",
        severity: WARNING,
        says: "kept in memory",
    },
    Fault {
        name: "mounted read-only",
        seed: |m, _| {
            m.filesystems.insert("/home".into(), Filesystem { read_only: true, ..filesystem("ext4", 400 << 30) });
        },
        check: "data file system",
        severity: ERROR,
        says: "read-only",
    },
    Fault {
        name: "no O_DIRECT",
        seed: |m, _| m.no_direct_io = true,
        check: "direct i/o",
        severity: WARNING,
        says: "cannot be opened with O_DIRECT",
    },
    Fault {
        name: "disk too small",
        seed: |_, s| set(s, "tiers.nvme.capacity=4TiB"),
        check: "disk room",
        severity: ERROR,
        says: "needs 4TiB more",
    },
    Fault {
        name: "socket path too long",
        seed: |_, s| set(s, &format!("socket=/run/{}/kvd.sock", "x".repeat(100))),
        check: "socket path",
        severity: ERROR,
        says: "a socket path at most 107",
    },
    Fault {
        name: "stale socket",
        seed: |m, _| {
            m.sockets.insert(format!("{DATA}/kvd.sock").into(), SocketState::Stale);
        },
        check: "socket path",
        severity: WARNING,
        says: "left over",
    },
    Fault {
        name: "socket of another user",
        seed: |m, _| {
            m.sockets.insert(format!("{DATA}/kvd.sock").into(), SocketState::Denied);
        },
        check: "socket path",
        severity: ERROR,
        says: "may not be used",
    },
    Fault {
        name: "socket folder open to all",
        seed: |m, s| {
            m.entries.insert("/srv/run".into(), folder(1000, 0o777));
            set(s, "socket=/srv/run/kvd.sock");
        },
        check: "socket path",
        severity: ERROR,
        says: "everybody may write",
    },
    Fault {
        name: "a silent process holds the folder",
        seed: |m, _| m.locked.push(format!("{DATA}/lock").into()),
        check: "daemon",
        severity: ERROR,
        says: "a process holds",
    },
    Fault {
        name: "few open files",
        seed: |m, _| m.open_files_max = 256,
        check: "open files",
        severity: ERROR,
        says: "only 256 open files",
    },
    Fault {
        name: "open files tight",
        seed: |m, _| m.open_files_max = 1024,
        check: "open files",
        severity: WARNING,
        says: "1024 open files",
    },
    Fault {
        name: "no huge pages",
        seed: |m, _| m.shared_huge_pages = "deny",
        check: "huge pages",
        severity: WARNING,
        says: "no huge pages",
    },
    Fault {
        name: "no huge pages, and a kernel that makes none when asked",
        seed: |m, _| (m.shared_huge_pages, m.kernel_release) = ("never", "5.14.0-503.el9"),
        check: "huge pages",
        severity: WARNING,
        says: "no huge pages",
    },
    Fault {
        name: "old kernel",
        seed: |m, _| m.kernel_release = "4.18.0-553.el8",
        check: "kernel",
        severity: ERROR,
        says: "older than 5.10",
    },
    Fault {
        name: "kernel without SO_PEERPIDFD",
        seed: |m, _| m.kernel_release = "5.15.0-1",
        check: "kernel",
        severity: WARNING,
        says: "SO_PEERPIDFD",
    },
    Fault {
        name: "slow clock",
        seed: |m, _| m.clock_source = "hpet",
        check: "clock",
        severity: WARNING,
        says: "clock source is hpet",
    },
    Fault {
        name: "plain processor",
        seed: |m, _| m.cpu_features = vec!["avx2"],
        check: "cpu",
        severity: WARNING,
        says: "lacks vpclmulqdq",
    },
    Fault {
        name: "arena on disk",
        seed: |_, s| set(s, "tiers.dram.path=/home/kv/arena"),
        check: "dram folder",
        severity: WARNING,
        says: "not in memory",
    },
    Fault {
        name: "arena open to others",
        seed: |m, s| {
            m.entries.insert("/dev/shm/kvd".into(), folder(1000, 0o777));
            set(s, "tiers.dram.path=/dev/shm/kvd");
        },
        check: "dram folder",
        severity: ERROR,
        says: "can be entered by others",
    },
    Fault {
        name: "wrong secret of the store",
        seed: |m, s| {
            bucket(s);
            m.store = Err(ProbeError::Credentials("status 403 SignatureDoesNotMatch".into()));
        },
        check: "object store",
        severity: ERROR,
        says: "s3://kv-cache/llm: the store does not accept the credentials",
    },
    Fault {
        name: "missing bucket",
        seed: |m, s| {
            bucket(s);
            m.store = Err(ProbeError::NoBucket("status 404 NoSuchBucket".into()));
        },
        check: "object store",
        severity: ERROR,
        says: "there is no such bucket",
    },
    Fault {
        name: "read-only bucket",
        seed: |m, s| {
            bucket(s);
            m.store = Err(ProbeError::OnlyRead("status 403 AccessDenied".into()));
        },
        check: "object store",
        severity: ERROR,
        says: "can be listed, but not written",
    },
    Fault {
        name: "store that writes over",
        seed: |m, s| {
            bucket(s);
            m.store = Err(ProbeError::NotCreateOnly);
        },
        check: "object store",
        severity: ERROR,
        says: "does not honour create-only writes; kvd cannot share it safely",
    },
    Fault {
        name: "store that fails",
        seed: |m, s| {
            bucket(s);
            m.store = Err(ProbeError::Fault { step: Step::Read, fault: StoreFault::Server("status 500".into()) });
        },
        check: "object store",
        severity: ERROR,
        says: "reading it back failed",
    },
    Fault {
        name: "folder of objects open to others",
        seed: |m, _| {
            m.entries.insert(format!("{DATA}/objects").into(), folder(1000, 0o755));
        },
        check: "object store",
        severity: WARNING,
        says: "can be entered by others (mode 0755)",
    },
    Fault {
        name: "folder of objects that cannot be used",
        seed: |m, _| {
            m.entries.insert(format!("{DATA}/objects").into(), folder(1000, 0o700));
            m.store = Err(ProbeError::Unusable("no hard links".into()));
        },
        check: "object store",
        severity: ERROR,
        says: "no hard links",
    },
    Fault {
        name: "folder of objects in memory",
        seed: |m, s| {
            m.filesystems.insert("/mnt/ram".into(), filesystem("tmpfs", 400 << 30));
            set(s, "tiers.object.url=file:///mnt/ram/objects");
        },
        check: "object store",
        severity: WARNING,
        says: "kept in memory",
    },
    Fault {
        name: "folder of objects on a read-only mount",
        seed: |m, s| {
            m.filesystems.insert("/mnt/ro".into(), Filesystem { read_only: true, ..filesystem("nfs", 400 << 30) });
            set(s, "tiers.object.url=file:///mnt/ro/objects");
        },
        check: "object store",
        severity: ERROR,
        says: "mounted read-only",
    },
    Fault {
        name: "folder of objects in the container's layer",
        seed: |m, s| {
            m.filesystems.insert("/mnt/layer".into(), filesystem("overlayfs", 400 << 30));
            set(s, "tiers.object.url=file:///mnt/layer/objects");
        },
        check: "object store",
        severity: WARNING,
        says: "on overlayfs",
    },
    Fault {
        name: "bucket without credentials",
        seed: |_, s| bucket(s),
        check: "config",
        severity: WARNING,
        says: "no credentials are given",
    },
    Fault {
        name: "DRAM smaller than a segment",
        seed: |_, s| set(s, "tiers.dram.capacity=1MiB"),
        check: "config",
        severity: ERROR,
        says: "less than one segment",
    },
    Fault {
        name: "NVMe smaller than DRAM",
        seed: |_, s| {
            set(s, "tiers.nvme.capacity=1GiB");
            set(s, "tiers.dram.capacity=8GiB");
        },
        check: "config",
        severity: WARNING,
        says: "NVMe (1GiB) is smaller than DRAM (8GiB)",
    },
    Fault {
        name: "admin API for everybody",
        seed: |_, s| set(s, "admin.listen=0.0.0.0:7411"),
        check: "config",
        severity: ERROR,
        says: "can be reached from other machines",
    },
    Fault {
        name: "unknown key",
        seed: |_, s| set(s, "tiers.dram.capacty=1GiB"),
        check: "config",
        severity: ERROR,
        says: "unknown key `tiers.dram.capacty`",
    },
    Fault {
        name: "readable secret",
        seed: |m, s| {
            m.entries.insert(
                "/etc/secret".into(),
                Entry { kind: EntryKind::File, uid: 1000, mode: 0o644, bytes: 32, allocated_bytes: 4096 },
            );
            set(s, "tenant.secret_file=/etc/secret");
        },
        check: "config",
        severity: ERROR,
        says: "can be read by others",
    },
];

#[test]
fn a_healthy_machine_has_no_findings() {
    let report = examine(&Sources::default(), &FakeMachine::healthy());
    assert_eq!((report.failed, report.warnings), (0, 0), "{:#?}", report.findings);
    assert!(report.checks >= 12, "{} checks", report.checks);
}

#[test]
fn every_seeded_fault_is_found_with_its_remedy() {
    for fault in FAULTS {
        let (mut machine, mut sources) = (FakeMachine::healthy(), Sources::default());
        (fault.seed)(&mut machine, &mut sources);
        let report = examine(&sources, &machine);
        let found = report.findings.iter().any(|finding| {
            finding.check == fault.check
                && finding.severity == fault.severity
                && finding.cause.contains(fault.says)
                && finding.remedy.as_ref().is_some_and(|remedy| !remedy.is_empty())
        });
        assert!(found, "{}: {:#?}", fault.name, report.findings);
        assert_eq!(report.failed > 0, report.findings.iter().any(|finding| finding.severity == ERROR));
    }
}

#[test]
fn a_machine_without_a_gpu_is_well() {
    let machine = FakeMachine { gpu: Err(DeviceError::NoDriver), ..FakeMachine::healthy() };
    let report = examine(&Sources::default(), &machine);
    let found = report.findings.iter().find(|finding| finding.check == "gpu").expect("it is looked for");
    assert_eq!((found.severity, found.cause.as_str()), (Severity::Ok, "no GPU: blocks in host memory only"));
}
