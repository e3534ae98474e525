//! Classes of calls, and what makes a class late or stuck; connections that get no answer at all. Each call waits on its
//! own: none holds up another.

use nfs3_types::nfs3::NFS_PROGRAM;
use std::collections::BTreeMap;
use std::net::IpAddr;
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
struct States {
    classes: [State; 4],
    /// Connections of these clients up to this number.
    wedged: BTreeMap<IpAddr, u64>,
}

/// Who calls: connections are numbered as they are accepted.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub address: IpAddr,
    pub connection: u64,
}

#[derive(Default)]
pub struct Gate {
    states: Mutex<States>,
    changed: Notify,
}

impl Gate {
    /// Returns when a call of `class` from `caller` may run.
    pub async fn pass(&self, class: Class, caller: Caller) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let (state, wedged) = self.change(|s| {
                let upto = s.wedged.get(&caller.address);
                (s.classes[class as usize], upto.is_some_and(|upto| caller.connection <= *upto))
            });
            if !state.stuck && !wedged {
                if !state.late.is_zero() {
                    tokio::time::sleep(state.late).await;
                }
                return;
            }
            changed.await;
        }
    }

    pub fn slow(&self, class: Class, late: Duration) {
        self.change(|s| s.classes[class as usize].late = late);
    }

    /// The connections of `client` up to number `upto` get no answer; None: all do again.
    pub fn wedge(&self, client: IpAddr, upto: Option<u64>) {
        self.change(|s| match upto {
            Some(upto) => s.wedged.insert(client, upto),
            None => s.wedged.remove(&client),
        });
        self.changed.notify_waiters();
    }

    pub fn stuck(&self, class: Class, on: bool) {
        self.change(|s| s.classes[class as usize].stuck = on);
        self.changed.notify_waiters();
    }

    pub fn clear(&self) {
        self.change(|s| *s = States::default());
        self.changed.notify_waiters();
    }

    fn change<T>(&self, f: impl FnOnce(&mut States) -> T) -> T {
        f(&mut self.states.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const ONE: Caller = Caller { address: ADDRESS, connection: 1 };
    const OTHER: Caller = Caller { address: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), connection: 2 };

    #[tokio::test(start_paused = true)]
    async fn a_stuck_class_waits_for_its_release_and_others_pass() {
        let gate = std::sync::Arc::new(Gate::default());
        gate.stuck(Class::Write, true);
        gate.slow(Class::Read, Duration::from_secs(5));
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.pass(Class::Write, ONE).await }
        });
        gate.pass(Class::Null, ONE).await;
        let before = tokio::time::Instant::now();
        gate.pass(Class::Read, ONE).await;
        assert_eq!(before.elapsed(), Duration::from_secs(5));
        assert!(!waiting.is_finished());
        gate.stuck(Class::Write, false);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_wedged_connection_waits_and_others_pass() {
        let gate = std::sync::Arc::new(Gate::default());
        gate.wedge(ADDRESS, Some(2));
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.pass(Class::Null, ONE).await }
        });
        gate.pass(Class::Write, OTHER).await;
        gate.pass(Class::Write, Caller { connection: 3, ..ONE }).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waiting.is_finished());
        gate.wedge(ADDRESS, None);
        waiting.await.unwrap();
    }
}
