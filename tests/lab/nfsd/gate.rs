//! Classes of calls, and what makes a class late or stuck. Each call waits on its own: none holds up another.

use nfs3_types::nfs3::NFS_PROGRAM;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Null,
    Read,
    Write,
    Metadata,
}

impl Class {
    pub const ALL: [Class; 4] = [Class::Null, Class::Read, Class::Write, Class::Metadata];

    /// READ; WRITE and COMMIT; NULL; all others.
    pub fn of(procedure: NFS_PROGRAM) -> Class {
        match procedure {
            NFS_PROGRAM::NFSPROC3_NULL => Class::Null,
            NFS_PROGRAM::NFSPROC3_READ => Class::Read,
            NFS_PROGRAM::NFSPROC3_WRITE | NFS_PROGRAM::NFSPROC3_COMMIT => Class::Write,
            _ => Class::Metadata,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Class::Null => "null",
            Class::Read => "read",
            Class::Write => "write",
            Class::Metadata => "metadata",
        }
    }
}

impl FromStr for Class {
    type Err = String;
    fn from_str(text: &str) -> Result<Class, String> {
        let found = Class::ALL.into_iter().find(|c| c.name() == text);
        found.ok_or_else(|| format!("{text:?} is no class: null, read, write or metadata"))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    late: Duration,
    stuck: bool,
}

#[derive(Default)]
pub struct Gate {
    states: Mutex<[State; 4]>,
    changed: Notify,
}

impl Gate {
    /// Returns when a call of `class` may run.
    pub async fn pass(&self, class: Class) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let state = self.change(|s| s[class as usize]);
            if !state.stuck {
                if !state.late.is_zero() {
                    tokio::time::sleep(state.late).await;
                }
                return;
            }
            changed.await;
        }
    }

    pub fn slow(&self, class: Class, late: Duration) {
        self.change(|s| s[class as usize].late = late);
    }

    pub fn stuck(&self, class: Class, on: bool) {
        self.change(|s| s[class as usize].stuck = on);
        self.changed.notify_waiters();
    }

    pub fn clear(&self) {
        self.change(|s| *s = Default::default());
        self.changed.notify_waiters();
    }

    fn change<T>(&self, f: impl FnOnce(&mut [State; 4]) -> T) -> T {
        f(&mut self.states.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stuck_class_waits_for_its_release_and_others_pass() {
        let gate = std::sync::Arc::new(Gate::default());
        gate.stuck(Class::Write, true);
        gate.slow(Class::Read, Duration::from_secs(5));
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.pass(Class::Write).await }
        });
        gate.pass(Class::Null).await;
        let before = tokio::time::Instant::now();
        gate.pass(Class::Read).await;
        assert_eq!(before.elapsed(), Duration::from_secs(5));
        assert!(!waiting.is_finished());
        gate.stuck(Class::Write, false);
        waiting.await.unwrap();
    }
}
