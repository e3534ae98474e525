//! Classic TC filters on the clsact hooks of an interface, whoever set them.

use super::connection::{Connection, invalid};
use netlink_packet_core::Parseable;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};
use netlink_sys::protocols::NETLINK_ROUTE;
use std::io;

const RTM_NEWTFILTER: u16 = 44;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Ingress,
    Egress,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub hook: Hook,
    pub priority: u16,
    pub handle: u32,
    /// `bpf`, `flower`, `matchall`, ...
    pub kind: String,
    /// Of a `bpf` filter: its name, and the id of its program.
    pub name: Option<String>,
    pub program: Option<u32>,
}

/// Errors: the kernel's. An interface without clsact has no filters.
pub fn list(index: u32) -> io::Result<Vec<Filter>> {
    let mut connection = Connection::open(NETLINK_ROUTE)?;
    let mut all = Vec::new();
    for (hook, minor) in [(Hook::Ingress, 0xfff2), (Hook::Egress, 0xfff3)] {
        let header = TcHeader {
            index: i32::try_from(index).map_err(invalid)?,
            parent: TcHandle { major: 0xffff, minor },
            ..TcHeader::default()
        };
        let request = RouteNetlinkMessage::GetTrafficFilter(TcMessage::from_parts(header, vec![]));
        all.extend(connection.dump(request, Vec::new, |found, kind, payload| {
            if kind == RTM_NEWTFILTER {
                found.extend(decode(hook, TcMessage::parse(payload).map_err(invalid)?));
            }
            Ok(())
        })?);
    }
    Ok(all)
}

/// `None`: the head of a priority's chain, not a filter.
fn decode(hook: Hook, message: TcMessage) -> Option<Filter> {
    let mut filter = Filter {
        hook,
        priority: (message.header.info >> 16) as u16,
        handle: u32::from(message.header.handle),
        kind: String::new(),
        name: None,
        program: None,
    };
    for attribute in message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => filter.kind = kind,
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name = Some(name),
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (filter.handle != 0).then_some(filter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::namespace::{ip, run};

    fn tc(arguments: &str) {
        // A program of several words is written with underscores.
        let words = arguments.split_whitespace().map(|word| word.replace('_', " "));
        let output = std::process::Command::new("tc").args(words).output().unwrap();
        assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn each_hook_has_its_own_and_most_interfaces_none() {
        run(|| {
            ip("link add va type veth peer name vb");
            let index = crate::config::interface_index("va").unwrap();
            assert_eq!(list(index).unwrap(), []);
            tc("qdisc add dev va clsact");
            assert_eq!(list(index).unwrap(), []);
            // A classic program of one instruction: nothing matches.
            tc("filter add dev va egress prio 7 handle 5 protocol ip bpf bytecode 1,6_0_0_0 flowid 1:1");
            let found = list(index).unwrap();
            let [one] = &found[..] else { panic!("{found:?}") };
            assert_eq!((one.hook, one.priority, one.handle), (Hook::Egress, 7, 5));
            assert_eq!((one.kind.as_str(), &one.name, one.program), ("bpf", &None, None));
        });
    }
}
