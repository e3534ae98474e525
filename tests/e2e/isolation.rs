//! The lab itself: nothing leaves it, nothing stays of it, faults do what they say.

use lab::control::Spec;
use lab::directory::Directory;
use lab::handle::binary;
use lab::{Lab, Options, wait_for};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

fn bare(name: &str) -> Lab {
    Lab::start(Options::named(name).without_agents()).unwrap()
}

fn stdout(lab: &Lab, node: &str, command: &[&str]) -> String {
    let out = lab.exec(node, command).unwrap();
    assert!(out.status.success(), "{command:?} on {node}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Pids of the processes whose command line speaks of this lab's directory or options, and are not dead already.
fn processes_of(id: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(id) {
            found.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

fn gone(id: &str) -> anyhow::Result<()> {
    let left = processes_of(id);
    anyhow::ensure!(left.is_empty(), "processes {left:?} are left");
    Ok(())
}

fn interfaces_here() -> BTreeSet<String> {
    let out = Command::new("ip").args(["-brief", "link"]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().map(|l| l.split_whitespace().next().unwrap_or_default().to_string()).collect()
}

#[test]
fn two_labs_run_side_by_side_and_neither_shows_outside() {
    let before = (interfaces_here(), std::fs::read_to_string("/proc/self/mounts").unwrap());
    let (one, two) = (bare("one"), bare("two"));
    for lab in [&one, &two] {
        let addresses = stdout(lab, "host1", &["ip", "-brief", "address"]);
        for address in ["192.168.33.1/24", "10.10.85.11/24", "192.168.85.11/24"] {
            assert!(addresses.contains(address), "{addresses}");
        }
    }
    std::fs::write(one.root().join("export/mark"), "one").unwrap();
    assert!(!two.root().join("export/mark").exists());
    assert!(Lab::start(Options { id: one.id().into(), ..Options::default() }).is_err());
    assert_eq!(
        (interfaces_here(), std::fs::read_to_string("/proc/self/mounts").unwrap()),
        before,
        "interfaces and mounts of this machine"
    );
    let ids = [one.id().to_string(), two.id().to_string()];
    one.stop();
    assert!(stdout(&two, "host1", &["ip", "-brief", "link"]).contains("nfs0"), "the other one goes on");
    two.stop();
    for id in &ids {
        wait_for("its end", SOON, || gone(id)).unwrap();
        assert!(!Directory::of(id).unwrap().path.exists());
    }
}

#[test]
fn a_killed_supervisor_takes_everything_with_it() {
    for victim in ["pid", "parent"] {
        let lab = bare("killed");
        let id = lab.id().to_string();
        // One that changed its credentials, one that asked for nothing, one that left its session.
        lab.run(Spec::new("host1/stray", &["setsid", "--fork", "sleep", "1000"])).unwrap();
        let inner: i32 =
            std::fs::read_to_string(Directory::of(&id).unwrap().pid_file()).unwrap().trim().parse().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{inner}/status")).unwrap();
        let parent = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
        let members = std::fs::read_link(format!("/proc/{inner}/ns/pid")).unwrap();
        let in_lab = || {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            all.filter(|e| std::fs::read_link(e.path().join("ns/pid")).is_ok_and(|l| l == members)).count()
        };
        wait_for("servers, port mappers and the stray", SOON, || {
            anyhow::ensure!(in_lab() > 7, "{} are there", in_lab());
            Ok(())
        })
        .unwrap();
        let pid = rustix::process::Pid::from_raw(if victim == "pid" { inner } else { parent }).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        wait_for("the end of every process", SOON, || {
            anyhow::ensure!(in_lab() == 0, "{} are left", in_lab());
            Ok(())
        })
        .unwrap();
        drop(lab);
        lab::directory::clean_stale();
        assert!(!Directory::of(&id).unwrap().path.exists());
    }
}

#[test]
fn a_lab_ends_with_its_owner() {
    let id = format!("orphan-{}", std::process::id());
    let options =
        serde_json::to_string(&Options { id: id.clone(), agents: false, ..Options::default() }).unwrap();
    let mut owner = Command::new("sh")
        .args(["-c", "sleep 1000 | \"$0\" supervise --owned --options \"$1\""])
        .arg(binary("reroute-lab").unwrap())
        .arg(options)
        .stdout(std::process::Stdio::null())
        // The shell's word on the end of its pipeline.
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let lab = wait_for("the lab", SOON, || Lab::attach(&id)).unwrap();
    let writer_end = processes_of("1000").into_iter().find(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c == b"sleep\x001000\x00")
            && std::fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|s| s.contains(&format!("PPid:\t{}\n", owner.id())))
    });
    let pid = rustix::process::Pid::from_raw(writer_end.unwrap().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    owner.wait().unwrap();
    drop(lab);
    wait_for("its end", SOON, || gone(&id)).unwrap();
    assert!(!Directory::of(&id).unwrap().path.exists());
}

#[test]
fn commands_run_in_the_node_and_give_their_exit_code() {
    let lab = bare("exec");
    assert_eq!(lab.exec("scvm2", &["sh", "-c", "exit 7"]).unwrap().status.code(), Some(7));
    assert_eq!(lab.exec("scvm2", &["sh", "-c", "kill -9 $$"]).unwrap().status.code(), Some(137));
    assert_eq!(lab.exec("scvm2", &["no-such-command"]).unwrap().status.code(), Some(127));
    let wrong = lab.exec("scvm9", &["true"]).unwrap();
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("scvm1"), "names the nodes there are");
    assert!(stdout(&lab, "scvm2", &["ip", "-brief", "address"]).contains("10.10.85.22/24"));
}

#[test]
fn faults_strike_and_heal() {
    let lab = bare("faults");
    let carrier = |node: &str| !stdout(&lab, node, &["ip", "link", "show", "sto0"]).contains("NO-CARRIER");
    let before = reroute_agent::clock::now();
    let cut = lab.fault("storage-link-cut", Some("scvm2")).unwrap();
    assert!(cut.at > before && cut.at < reroute_agent::clock::now());
    assert!(!carrier("scvm2"));
    assert!(carrier("scvm1"));
    assert!(lab.fault("storage-link-cut", Some("scvm2")).is_err(), "it stands already");
    lab.fault("host-storage-cut", None).unwrap();
    assert!(!carrier("host1"));

    lab.fault("server-killed", None).unwrap();
    let dead = lab.wait_process("scvm1/server", SOON).unwrap();
    assert_eq!(dead.exit.unwrap().signal, Some(9));
    lab.fault("server-hung", Some("scvm3")).unwrap();
    let state = || {
        let pid = lab.process("scvm3/server").unwrap().pid;
        stdout(&lab, "scvm3", &["grep", "State", &format!("/proc/{pid}/status")])
    };
    assert!(state().contains("stopped"), "{}", state());

    assert_eq!(lab.heal().unwrap().len(), 4);
    assert!(carrier("scvm2") && carrier("host1"));
    assert!(!state().contains("stopped"));
    assert!(lab.process("scvm1/server").unwrap().runs());
    assert!(lab.heal().unwrap().is_empty());
}

#[test]
fn a_hung_server_goes_on_by_itself() {
    let lab = bare("hung");
    let hung = lab.fault("server-hung", None).unwrap();
    let pid = lab.process("scvm1/server").unwrap().pid;
    wait_for("SIGCONT", SOON, || {
        let state = stdout(&lab, "scvm1", &["grep", "State", &format!("/proc/{pid}/status")]);
        anyhow::ensure!(!state.contains("stopped"), "{state}");
        Ok(())
    })
    .unwrap();
    let after = reroute_agent::clock::now().since(hung.at);
    assert!((4_900_000_000..7_000_000_000).contains(&after), "after {after} ns");
}
