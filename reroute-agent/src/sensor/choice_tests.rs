use super::*;
use Way::*;

const ALL: Option<u64> = Some(BASIC | RX_SG);
const ONE_BUFFER: Option<u64> = Some(BASIC);

fn facts(driver: &str, mtu: u32, features: Option<u64>) -> Facts {
    Facts { driver: Some(driver.into()), mtu, features, occupant: None }
}

fn ways(choice: &Choice) -> Vec<Way> {
    choice.attempts.iter().map(|a| a.way).collect()
}

#[test]
fn the_order_by_wish_driver_mtu_and_features() {
    let first = [Native, Tcx, Clsact, Generic];
    let (tc_first, tc) = ([Tcx, Clsact, Generic], [Tcx, Clsact]);
    let generic_first = [Generic, Tcx, Clsact];
    /// Wish, driver, MTU, features; attempts, and what is said of those passed over.
    type Case<'a> = (XdpMode, &'a str, u32, Option<u64>, &'a [Way], &'a str);
    let cases: &[Case<'_>] = &[
        (XdpMode::Auto, "tun", 1500, ALL, &first, ""),
        (XdpMode::Auto, "tun", 1500, None, &first, ""),
        (XdpMode::Auto, "tun", 9000, ALL, &first, ""),
        (XdpMode::Auto, "tun", 9000, None, &tc_first, "not known"),
        (XdpMode::Auto, "veth", 1500, ALL, &tc_first, "super-packets"),
        (XdpMode::Native, "veth", 1500, ALL, &first, ""),
        (XdpMode::Auto, "veth", 1500, Some(0), &tc_first, "says that it has none"),
        (XdpMode::Auto, "tun", ONE_BUFFER_MTU, ONE_BUFFER, &first, ""),
        (XdpMode::Auto, "tun", ONE_BUFFER_MTU + 1, ONE_BUFFER, &tc_first, "one buffer per frame"),
        (XdpMode::Auto, "virtio_net", 9000, ALL, &tc_first, "super-packets"),
        (XdpMode::Auto, "vif", 1500, ONE_BUFFER, &tc_first, "never runs"),
        (XdpMode::Auto, "mlx5_core", 9000, ALL, &tc_first, "carrier"),
        (XdpMode::Auto, "newnic", 1500, ALL, &tc_first, "may interrupt"),
        (XdpMode::Native, "mlx5_core", 9000, ALL, &first, ""),
        (XdpMode::Native, "vmxnet3", 9000, ONE_BUFFER, &tc_first, "one buffer per frame"),
        (XdpMode::Native, "vmxnet3", 9000, None, &first, ""),
        (XdpMode::Generic, "veth", 9000, ALL, &generic_first, "xdp = \"generic\""),
        (XdpMode::Tc, "veth", 1500, ALL, &tc, "xdp = \"tc\""),
        (XdpMode::Clsact, "veth", 1500, ALL, &[Clsact], "xdp = \"clsact\""),
    ];
    for (wish, driver, mtu, features, wanted, why) in cases {
        let choice = choose(*wish, &facts(driver, *mtu, *features));
        assert_eq!(ways(&choice), *wanted, "{wish:?} {driver} {mtu} {features:?}: {choice:?}");
        let said = choice.passed_over.join("; ");
        assert_eq!(said.is_empty(), why.is_empty(), "{wish:?} {driver} {mtu}: {said:?}");
        assert!(said.contains(why), "{wish:?} {driver} {mtu}: {said:?}");
        assert!(choice.attempts.iter().all(|a| !a.why.is_empty()), "{choice:?}");
    }
}

#[test]
fn a_program_of_somebody_else_is_never_in_the_way() {
    for wish in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
        let occupant = Some("XDP program firewall (id 7)".to_string());
        let choice = choose(wish, &Facts { occupant, ..facts("veth", 1500, ALL) });
        assert_eq!(ways(&choice), [Tcx, Clsact], "{wish:?}");
        assert!(choice.passed_over[0].contains("firewall (id 7)"), "{:?}", choice.passed_over);
    }
}

#[test]
fn an_interface_without_a_driver_is_seen_by_tc() {
    let nic = Facts { driver: None, ..facts("", 65536, Some(0)) };
    let choice = choose(XdpMode::Auto, &nic);
    assert_eq!(ways(&choice), [Tcx, Clsact, Generic]);
    assert!(choice.passed_over[0].contains("no driver of its own"), "{:?}", choice.passed_over);
}

#[test]
fn only_a_native_program_can_miss_the_rest_of_a_frame() {
    for way in [Generic, Tcx, Clsact] {
        for features in [None, ALL, ONE_BUFFER] {
            assert_eq!(multi_buffer(way, features), MultiBuffer::Yes, "{way:?}");
        }
    }
    assert_eq!(multi_buffer(Native, ALL), MultiBuffer::Yes);
    assert_eq!(multi_buffer(Native, ONE_BUFFER), MultiBuffer::No);
    assert_eq!(multi_buffer(Native, None), MultiBuffer::Unknown);
}
