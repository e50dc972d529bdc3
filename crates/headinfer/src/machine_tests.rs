//! Tests of budgets and kept figures, on made-up /proc and /sys.

use super::*;

fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 4000 kB\nMemAvailable:   2000 kB\n");

#[test]
fn without_a_cgroup_the_system_decides() {
    let system = |bytes| Available { bytes, cgroup: false };
    assert_eq!(available_under(root(&[MEMINFO]).path()), system(2000 * KIB));
    assert_eq!(available_under(root(&[]).path()), system(0));
}

#[test]
fn the_tightest_group_decides_in_version_2() {
    let dir = root(&[
        MEMINFO,
        ("proc/self/cgroup", "0::/a/b\n"),
        ("sys/fs/cgroup/a/memory.max", "1000000\n"),
        ("sys/fs/cgroup/a/memory.current", "300000\n"),
        ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 100000\n"),
        ("sys/fs/cgroup/a/b/memory.max", "max\n"),
    ]);
    assert_eq!(available_under(dir.path()), Available { bytes: 800_000, cgroup: true });
}

#[test]
fn version_1_is_read_at_its_mount() {
    let dir = root(&[
        MEMINFO,
        ("proc/self/cgroup", "3:cpu:/x\n2:memory:/elsewhere\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "500000\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "600000\n"),
    ]);
    assert_eq!(available_under(dir.path()), Available { bytes: 0, cgroup: true });
}

#[test]
fn a_wide_group_does_not_decide() {
    let dir = root(&[
        MEMINFO,
        ("proc/self/cgroup", "0::/a\n"),
        ("sys/fs/cgroup/a/memory.max", "99000000000\n"),
        ("sys/fs/cgroup/a/memory.current", "1\n"),
    ]);
    assert_eq!(available_under(dir.path()), Available { bytes: 2000 * KIB, cgroup: false });
}

#[test]
fn figures_survive_being_kept_and_a_damaged_file_is_left_aside() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept { cpu: Some(Machine::default_cpu(3)), cuda: None, cuda_memory: Some(5) };
    let path = kept.save(&dir.path().join("new")).unwrap();
    assert_eq!(Kept::load(path.parent()), kept);
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("144000000000.0", "-1.0")).unwrap();
    assert_eq!(Kept::load(path.parent()), Kept::default());
    assert_eq!(Kept::load(None), Kept::default());
}
