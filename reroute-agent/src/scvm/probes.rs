//! NULL calls to the server, beside the machine.

use super::null_rpc::Prober;
use super::run_delay;
use reroute_core::scvm::Input;
use tokio::sync::mpsc;

pub(super) enum Probe {
    /// Of these processes.
    Ask(Vec<u32>),
    Close,
}

/// Runs the prober as a task: it may wait for the server, the machine may not.
pub(super) fn start(
    mut prober: Prober,
    results: mpsc::UnboundedSender<Input>,
) -> mpsc::UnboundedSender<Probe> {
    let (ask, mut asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let waits = prober.waits();
            let input = tokio::select! {
                biased;
                probe = asked.recv() => match probe {
                    Some(Probe::Ask(pids)) => {
                        let before = run_delay::read(&pids);
                        let (answered, took_ns) = prober.probe().await;
                        let starved = !answered && run_delay::starved(&before, &run_delay::read(&pids), took_ns);
                        Input::NullRpc { answered, took_ns, starved }
                    }
                    Some(Probe::Close) => {
                        prober.close();
                        continue;
                    }
                    None => break,
                },
                late = prober.late_answer(), if waits => {
                    Input::NullRpc { answered: late.is_some(), took_ns: late.unwrap_or(0), starved: false }
                }
            };
            let _ = results.send(input);
        }
    });
    ask
}
