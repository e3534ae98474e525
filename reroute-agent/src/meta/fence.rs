//! The site's fence command: how it is called, and what its exit code means.

use crate::command;
use crate::config::{FenceCommand, ns};
use reroute_core::meta::{FenceCommandOutcome, FenceCommandRun, FenceCommandSettings, Input};
use std::path::Path;
use tokio::sync::mpsc;

/// Of its output, for the journal.
const TAIL: usize = 2000;
/// Exit code of a command that will not do it.
const REFUSES: i32 = 2;

pub fn settings(command: &FenceCommand) -> FenceCommandSettings {
    FenceCommandSettings { retry_ns: ns(command.retry_ms), also_after_ns: command.also_after_ms.map(ns) }
}

/// Runs it aside; its end goes to `ended`.
pub fn start(command: FenceCommand, run: FenceCommandRun, ended: mpsc::UnboundedSender<Input>) {
    tokio::task::spawn_blocking(move || {
        let _ = ended.send(carry_out(&command, &run));
    });
}

fn carry_out(config: &FenceCommand, run: &FenceCommandRun) -> Input {
    let scvm = &run.scvm;
    let places = [
        scvm.id.0.to_string(),
        scvm.name.clone(),
        scvm.storage.to_string(),
        scvm.management.to_string(),
        run.attempt.to_string(),
    ];
    let fill = |argument: &String| {
        let places = FenceCommand::PLACES.iter().zip(&places);
        places.fold(argument.clone(), |text, (place, value)| text.replace(place, value))
    };
    let arguments: Vec<String> = config.command.iter().skip(1).map(fill).collect();
    let logins: Vec<String> =
        run.logins.iter().map(|(host, epoch)| format!("{}@{}", host.0, epoch.0)).collect();
    let [id, name, storage, management, attempt] = places;
    let environment = [
        ("REROUTE_SCVM", id),
        ("REROUTE_SCVM_NAME", name),
        ("REROUTE_SCVM_STORAGE", storage),
        ("REROUTE_SCVM_MANAGEMENT", management),
        ("REROUTE_POLICY", format!("{:?}", scvm.policy).to_lowercase()),
        ("REROUTE_ATTEMPT", attempt),
        ("REROUTE_LOGINS", logins.join(" ")),
    ];
    let program = config.command.first().map(String::as_str).unwrap_or_default();
    let ended = command::run(Path::new(program), &arguments, &environment, config.time_limit());
    let failed = |why: String| FenceCommandOutcome::Failed { why };
    let (outcome, took, output) = match ended {
        Err(error) => {
            (failed(format!("{program} cannot be started: {error}")), Default::default(), String::new())
        }
        Ok(ended) => {
            let outcome = match ended.status {
                None => failed(format!("killed after its time limit of {} ms", config.time_limit_ms)),
                Some(status) => match status.code() {
                    Some(0) => FenceCommandOutcome::Fenced,
                    Some(REFUSES) => FenceCommandOutcome::Refused { why: "exit code 2".into() },
                    _ => failed(status.to_string()),
                },
            };
            (outcome, ended.took, ended.tail(TAIL))
        }
    };
    let took_ns = took.as_nanos() as u64;
    Input::FenceCommandEnded { scvm: scvm.id, run: run.run, outcome, took_ns, output }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::testing::Dir;
    use reroute_core::ids::{Epoch, FencePolicy, HostId, ScvmId, ScvmInfo};
    use std::os::unix::fs::PermissionsExt;

    fn run(script: &str, arguments: &[&str], time_limit_ms: u64) -> (FenceCommandOutcome, String, u64) {
        let dir = Dir::new("fence");
        let program = dir.path().join("fence");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = program.to_str().unwrap().to_string();
        let command = std::iter::once(program).chain(arguments.iter().map(|a| a.to_string())).collect();
        let config = FenceCommand { command, time_limit_ms, retry_ms: 1000, also_after_ms: None };
        let scvm = ScvmInfo {
            id: ScvmId(4),
            name: "s4".into(),
            storage: [10, 0, 0, 4].into(),
            management: [10, 1, 0, 4].into(),
            policy: FencePolicy::Kill,
        };
        let logins = vec![(HostId(1), Epoch(7)), (HostId(2), Epoch(9))];
        match carry_out(&config, &FenceCommandRun { run: 3, attempt: 2, scvm, logins }) {
            Input::FenceCommandEnded { scvm: ScvmId(4), run: 3, outcome, took_ns, output } => {
                (outcome, output, took_ns)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_is_told_whom_to_fence_and_its_exit_code_is_the_answer() {
        let script = "echo \"$@\"; env | grep ^REROUTE_ | sort";
        let (outcome, output, _) =
            run(script, &["--node", "{name}", "{scvm}/{attempt}", "{storage},{management}"], 5000);
        assert_eq!(outcome, FenceCommandOutcome::Fenced);
        let want = "--node s4 4/2 10.0.0.4,10.1.0.4\nREROUTE_ATTEMPT=2\nREROUTE_LOGINS=1@7 2@9\nREROUTE_POLICY=kill\n\
                    REROUTE_SCVM=4\nREROUTE_SCVM_MANAGEMENT=10.1.0.4\nREROUTE_SCVM_NAME=s4\nREROUTE_SCVM_STORAGE=10.0.0.4";
        assert_eq!(output, want);
        let refused = FenceCommandOutcome::Refused { why: "exit code 2".into() };
        assert_eq!(run("echo no >&2; exit 2", &[], 5000).0, refused);
        for script in ["exit 1", "exit 3", "exit 127", "kill -9 $$"] {
            let (outcome, ..) = run(script, &[], 5000);
            assert!(matches!(outcome, FenceCommandOutcome::Failed { .. }), "{script}: {outcome:?}");
        }
    }

    #[test]
    fn who_hangs_or_floods_has_failed_when_its_time_is_up() {
        for script in ["echo begun; sleep 600; exit 0", "yes flood", "trap '' TERM; sleep 600 & wait; exit 0"]
        {
            let (outcome, output, took_ns) = run(script, &[], 600);
            let FenceCommandOutcome::Failed { why } = outcome else { panic!("{script}: {outcome:?}") };
            assert!(why.contains("time limit of 600 ms"), "{why}");
            assert!(output.len() <= TAIL && took_ns >= 600_000_000);
        }
        // A flood that ends is no failure.
        assert_eq!(run("head -c 9000000 /dev/zero; exit 0", &[], 30_000).0, FenceCommandOutcome::Fenced);
    }

    #[test]
    fn what_cannot_be_started_has_failed() {
        let config = FenceCommand {
            command: vec!["/no/such/program".into()],
            time_limit_ms: 100,
            retry_ms: 100,
            also_after_ms: None,
        };
        let scvm = ScvmInfo {
            id: ScvmId(4),
            name: "s4".into(),
            storage: [10, 0, 0, 4].into(),
            management: [10, 1, 0, 4].into(),
            policy: FencePolicy::Kill,
        };
        let ended = carry_out(&config, &FenceCommandRun { run: 1, attempt: 1, scvm, logins: vec![] });
        let Input::FenceCommandEnded { outcome: FenceCommandOutcome::Failed { why }, .. } = ended else {
            panic!()
        };
        assert!(why.contains("cannot be started"), "{why}");
    }
}
