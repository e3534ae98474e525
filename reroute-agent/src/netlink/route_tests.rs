use super::*;
use crate::config::interface_index;
use crate::netlink::namespace::{ip, ip_shows, run, run_async};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 2);

/// Two networks, the host's ends `sto` and `mgmt` up.
fn networks() -> (NextHop, NextHop) {
    for (name, address) in [("sto", "10.10.85.11/24"), ("mgmt", "192.168.85.11/24")] {
        ip(&format!("link add {name} type veth peer name {name}-peer"));
        ip(&format!("addr add {address} dev {name}"));
        ip(&format!("link set {name} up"));
        ip(&format!("link set {name}-peer up"));
    }
    let hop = |gateway: [u8; 4], name, source: [u8; 4]| NextHop {
        gateway: gateway.into(),
        oif: interface_index(name).unwrap(),
        source: source.into(),
    };
    (hop([10, 10, 85, 21], "sto", [10, 10, 85, 11]), hop([192, 168, 85, 21], "mgmt", [192, 168, 85, 11]))
}

#[test]
fn the_route_is_set_read_back_and_replaced() {
    run(|| {
        let (storage, management) = networks();
        let mut table = Table::open(SERVICE, 199).unwrap();
        assert_eq!(table.read().unwrap(), []);
        let set = table.replace(storage, false).unwrap();
        assert_eq!((set.gateway, set.oif, set.protocol), (Some(storage.gateway), Some(storage.oif), 199));
        assert_eq!(set.source, Some(storage.source));
        table.replace(management, false).unwrap();
        assert_eq!(
            ip_shows("route show 192.168.33.2/32"),
            "192.168.33.2 via 192.168.85.21 dev mgmt proto 199 src 192.168.85.11"
        );
    });
}

#[test]
fn no_look_up_finds_no_route_while_it_is_replaced() {
    run(|| {
        let (storage, management) = networks();
        let mut table = Table::open(SERVICE, 199).unwrap();
        table.replace(storage, false).unwrap();
        // Opened here: the threads of a scope share the namespace of the one that starts them.
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let looker = scope.spawn(|| {
                let mut looks = 0u32;
                while !done.load(Ordering::Relaxed) || looks < 100 {
                    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                    socket.connect((SERVICE, 2049)).expect("there is always a route");
                    looks += 1;
                }
                looks
            });
            for round in 0..1000 {
                table.replace(if round % 2 == 0 { management } else { storage }, false).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            assert!(looker.join().unwrap() >= 100);
        });
    });
}

#[test]
fn a_foreign_route_is_refused_and_untouched_until_adopted() {
    run(|| {
        let (storage, _) = networks();
        for (foreign, count) in [
            ("192.168.33.2/32 via 10.10.85.99 proto static", 1),
            ("192.168.33.2/32 via 10.10.85.99 proto 200 metric 50", 1),
            ("blackhole 192.168.33.2/32 proto 201 metric 60", 1),
        ] {
            ip("route flush 192.168.33.2/32");
            ip(&format!("route add {foreign}"));
            let before = ip_shows("route show 192.168.33.2/32");
            let mut table = Table::open(SERVICE, 199).unwrap();
            assert_eq!(table.read().unwrap().len(), count);
            let error = table.replace(storage, false).unwrap_err();
            assert!(matches!(error, RouteError::ForeignRoute { .. }), "{error}");
            assert_eq!(ip_shows("route show 192.168.33.2/32"), before);
            table.replace(storage, true).unwrap();
            let [ours] = &table.read().unwrap()[..] else { panic!("one route after adoption") };
            assert_eq!((ours.protocol, ours.gateway), (199, Some(storage.gateway)));
        }
    });
}

#[test]
fn routes_to_other_places_and_tables_are_not_ours() {
    run(|| {
        networks();
        ip("route add 192.168.33.0/24 via 10.10.85.99");
        ip("route add 192.168.33.3/32 via 10.10.85.99");
        ip("route add 192.168.33.2/32 via 10.10.85.99 table 77");
        assert_eq!(Table::open(SERVICE, 199).unwrap().read().unwrap(), []);
    });
}

#[test]
fn a_dead_interface_is_an_error_by_name() {
    run(|| {
        let (storage, _) = networks();
        ip("link set sto down");
        let error = Table::open(SERVICE, 199).unwrap().replace(storage, false).unwrap_err();
        assert!(matches!(error, RouteError::Replace { .. }), "{error}");
        assert!(error.to_string().contains("10.10.85.21"), "{error}");
    });
}

#[test]
fn a_flush_by_link_down_is_noticed() {
    run_async(async || {
        let (storage, _) = networks();
        let mut table = Table::open(SERVICE, 199).unwrap();
        table.replace(storage, false).unwrap();
        let mut changes = watch(SERVICE).unwrap();
        ip("link set sto down");
        let noticed = async {
            while !table.read().unwrap().is_empty() {
                changes.recv().await.expect("the watch goes on");
            }
            // The reader is told at least once, in whatever order the kernel tells.
            changes.recv().await.expect("the watch goes on");
        };
        tokio::time::timeout(Duration::from_secs(5), noticed).await.expect("noticed within 5 s");
        assert_eq!(table.read().unwrap(), []);
    });
}

#[test]
fn another_hand_on_the_route_is_noticed() {
    run_async(async || {
        let (storage, _) = networks();
        let mut table = Table::open(SERVICE, 199).unwrap();
        table.replace(storage, false).unwrap();
        let mut changes = watch(SERVICE).unwrap();
        ip("route replace 192.168.33.2/32 via 192.168.85.99 proto 200");
        let noticed = async { while changes.recv().await.expect("the watch goes on") != Change::Route {} };
        tokio::time::timeout(Duration::from_secs(5), noticed).await.expect("noticed within 5 s");
        assert!(matches!(table.replace(storage, false), Err(RouteError::ForeignRoute { .. })));
    });
}
