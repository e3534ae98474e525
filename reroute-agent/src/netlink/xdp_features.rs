//! What drivers can do with XDP, as they say themselves (generic netlink family `netdev`, kernel 6.3).

use super::connection::{Connection, invalid};
use netlink_packet_core::{Emitable, NlasIterator, parse_string, parse_u16, parse_u32, parse_u64};
use netlink_packet_generic::constants::GENL_HDRLEN;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use std::collections::BTreeMap;
use std::io;

/// Native XDP, with all its plain verdicts (`NETDEV_XDP_ACT_BASIC`).
pub const BASIC: u64 = 1;
/// Frames received in several buffers (`NETDEV_XDP_ACT_RX_SG`).
pub const RX_SG: u64 = 1 << 5;

const FAMILY: &str = "netdev";
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// `dev-get`: every device of the namespace.
#[derive(Clone, Debug)]
struct DevGet;

impl GenlFamily for DevGet {
    fn family_name() -> &'static str {
        FAMILY
    }
    fn command(&self) -> u8 {
        NETDEV_CMD_DEV_GET
    }
    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for DevGet {
    fn buffer_len(&self) -> usize {
        0
    }
    fn emit(&self, _: &mut [u8]) {}
}

/// Bits by interface index, in the calling thread's network namespace. `None`: the kernel (before 6.3) does not say.
pub fn read() -> io::Result<Option<BTreeMap<u32, u64>>> {
    let mut connection = Connection::open(NETLINK_GENERIC)?;
    let families = GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![] });
    let family = connection.dump(
        families,
        || None,
        |found, _, payload| {
            let (mut id, mut name) = (None, None);
            attributes(payload, |kind, value| {
                match kind {
                    CTRL_ATTR_FAMILY_ID => id = Some(parse_u16(value).map_err(invalid)?),
                    CTRL_ATTR_FAMILY_NAME => name = Some(parse_string(value).map_err(invalid)?),
                    _ => {}
                }
                Ok(())
            })?;
            if name.as_deref() == Some(FAMILY) {
                *found = id;
            }
            Ok(())
        },
    )?;
    let Some(family) = family else { return Ok(None) };
    let mut request = GenlMessage::from_payload(DevGet);
    request.set_resolved_family_id(family);
    let devices = connection.dump(request, BTreeMap::new, |all, _, payload| {
        let (mut index, mut bits) = (None, None);
        attributes(payload, |kind, value| {
            match kind {
                NETDEV_A_DEV_IFINDEX => index = Some(parse_u32(value).map_err(invalid)?),
                NETDEV_A_DEV_XDP_FEATURES => bits = Some(parse_u64(value).map_err(invalid)?),
                _ => {}
            }
            Ok(())
        })?;
        if let (Some(index), Some(bits)) = (index, bits) {
            all.insert(index, bits);
        }
        Ok(())
    })?;
    Ok(Some(devices))
}

fn attributes(payload: &[u8], mut each: impl FnMut(u16, &[u8]) -> io::Result<()>) -> io::Result<()> {
    for attribute in NlasIterator::new(payload.get(GENL_HDRLEN..).unwrap_or_default()) {
        let attribute = attribute.map_err(invalid)?;
        each(attribute.kind(), attribute.value())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::namespace::{ip, run};

    #[test]
    fn veth_takes_frames_in_several_buffers_and_loopback_no_native_program() {
        run(|| {
            ip("link add va numtxqueues 1 numrxqueues 1 type veth peer name vb numtxqueues 1 numrxqueues 1");
            let index = crate::config::interface_index;
            let all = read().unwrap().unwrap();
            assert_eq!(all[&index("va").unwrap()] & (BASIC | RX_SG), BASIC | RX_SG);
            assert_eq!(all[&index("lo").unwrap()] & BASIC, 0);
        });
    }
}
