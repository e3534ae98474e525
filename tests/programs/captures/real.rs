//! Captures of the lab: see `data/README.md`.

use super::compare::{Counts, Records, V4};
use super::traffic::Way;
use super::tshark;
use crate::bench::SERVICE;
use std::path::Path;

fn exact(name: &str, records: Records) -> Counts {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/captures/data").join(name);
    // All are IPv4 without tags: the source stands at byte 26.
    let frames = tshark::read(&file, |bytes| if bytes[26..30] == SERVICE { Way::Out } else { Way::In });
    V4.check(&frames, records)
}

#[test]
fn writers_of_the_lab() {
    let counts = exact("writer.pcap", Records::Both);
    let [one, two] = [&counts.hosts[&1], &counts.hosts[&2]];
    assert_eq!((one.opened, one.closed + one.reset, two.opened, two.closed + two.reset), (1, 1, 1, 0));
    assert!(one.calls[2] > 3 && two.calls[2] > 3 && two.calls[3] > 10);
    assert_eq!(counts.foreign, 14);
}

#[test]
fn a_writer_of_the_lab_under_loss() {
    let counts = exact("loss.pcap", Records::Reference);
    let host = &counts.hosts[&1];
    assert!(host.rx_retransmitted > 5 && host.tx_retransmitted > 5);
    assert!(host.calls[2] > 10);
}

#[test]
fn connections_of_the_lab_that_libnfs_resets() {
    let counts = exact("resets.pcap", Records::Both);
    let host = &counts.hosts[&1];
    assert_eq!((host.opened, host.reset, host.closed), (15, 15, 0));
    assert_eq!((host.calls, host.replies), ([15, 0, 0, 0], [15, 0, 0, 0]));
}
