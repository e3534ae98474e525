//! Carrier of named interfaces.

use super::connection::{Connection, invalid, messages};
use super::monitor::{Heard, Monitor};
use anyhow::Context;
use netlink_packet_core::Parseable;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use rtnetlink::MulticastGroup;
use std::collections::BTreeMap;
use std::io;
use tokio::sync::mpsc;

/// `carrier`: the interface exists, is up, and its link is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkChange {
    pub interface: String,
    pub carrier: bool,
}

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;

/// Watches the named interfaces of the calling thread's network namespace, from a task on the current tokio runtime.
/// First comes the state of each as it is now, then every change. An interface that does not exist has no carrier;
/// one that comes back under its name is taken up again. The stream ends when the receiver is dropped, or with a
/// logged error when the kernel's socket fails.
pub fn watch(names: &[String]) -> anyhow::Result<mpsc::UnboundedReceiver<LinkChange>> {
    let mut monitor = Monitor::open(&[MulticastGroup::Link]).context("cannot subscribe to link changes")?;
    let mut state = Carriers { known: names.iter().map(|name| (name.clone(), None)).collect() };
    let (changes, receiver) = mpsc::unbounded_channel();
    for change in state.update(read().context("cannot read the links")?) {
        let _ = changes.send(change);
    }
    tokio::spawn(async move {
        loop {
            let heard = tokio::select! {
                heard = monitor.next() => heard,
                () = changes.closed() => return,
            };
            let news = match heard {
                Ok(Heard::Overrun) => read().map(|all| state.update(all)),
                Ok(Heard::Datagram(bytes)) => state.apply(bytes),
                Err(error) => Err(error),
            };
            match news {
                Ok(news) => {
                    for change in news {
                        let _ = changes.send(change);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "link changes are no longer seen");
                    return;
                }
            }
        }
    });
    Ok(receiver)
}

struct Carriers {
    known: BTreeMap<String, Option<bool>>,
}

fn carrier(link: &LinkMessage) -> Option<(String, bool)> {
    let name = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    Some((name, link.header.flags.contains(LinkFlags::LowerUp)))
}

fn read() -> io::Result<BTreeMap<String, bool>> {
    Connection::open(NETLINK_ROUTE)?.dump(
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        BTreeMap::new,
        |all, kind, payload| {
            if kind == RTM_NEWLINK {
                all.extend(carrier(&LinkMessage::parse(payload).map_err(invalid)?));
            }
            Ok(())
        },
    )
}

impl Carriers {
    fn set(&mut self, interface: &str, carrier: bool) -> Option<LinkChange> {
        let known = self.known.get_mut(interface)?;
        if known.replace(carrier) == Some(carrier) {
            return None;
        }
        Some(LinkChange { interface: interface.to_string(), carrier })
    }

    fn update(&mut self, all: BTreeMap<String, bool>) -> Vec<LinkChange> {
        let names: Vec<String> = self.known.keys().cloned().collect();
        names.iter().filter_map(|name| self.set(name, all.get(name).copied().unwrap_or(false))).collect()
    }

    fn apply(&mut self, datagram: &[u8]) -> io::Result<Vec<LinkChange>> {
        let mut changes = Vec::new();
        for message in messages(datagram) {
            let message = message?;
            // Bridges speak of their ports on the same group (AF_BRIDGE): not about the link itself.
            if !matches!(message.kind, RTM_NEWLINK | RTM_DELLINK)
                || message.payload.first() != Some(&(libc::AF_UNSPEC as u8))
            {
                continue;
            }
            let Some((name, up)) = carrier(&LinkMessage::parse(message.payload).map_err(invalid)?) else {
                continue;
            };
            changes.extend(self.set(&name, up && message.kind == RTM_NEWLINK));
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::namespace::{ip, run_async};
    use std::time::Duration;

    async fn next(changes: &mut mpsc::UnboundedReceiver<LinkChange>) -> (String, bool) {
        let change = tokio::time::timeout(Duration::from_secs(5), changes.recv()).await;
        let change = change.expect("a change within 5 s").expect("the watch goes on");
        (change.interface, change.carrier)
    }

    #[test]
    fn carrier_is_followed_from_the_first_state_on() {
        run_async(async || {
            ip("link add va type veth peer name vb");
            ip("link set va up");
            ip("link set vb up");
            let mut changes = watch(&["va".into(), "vlater".into()]).unwrap();
            assert_eq!(next(&mut changes).await, ("va".into(), true));
            assert_eq!(next(&mut changes).await, ("vlater".into(), false));
            ip("link set vb down");
            assert_eq!(next(&mut changes).await, ("va".into(), false), "the other end is down: no carrier");
            ip("link set vb up");
            assert_eq!(next(&mut changes).await, ("va".into(), true));
            ip("link set va down");
            assert_eq!(next(&mut changes).await, ("va".into(), false));
            ip("link add vlater type veth peer name vlater-peer");
            ip("link set vlater-peer up");
            ip("link set vlater up");
            assert_eq!(next(&mut changes).await, ("vlater".into(), true));
            ip("link del vlater");
            assert_eq!(next(&mut changes).await, ("vlater".into(), false));
            assert!(changes.try_recv().is_err(), "nothing is said twice");
        });
    }
}
