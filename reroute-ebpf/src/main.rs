//! Entry points, and the one table of verdicts. On the host this is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
    use aya_ebpf::helpers::generated::bpf_redirect;
    use aya_ebpf::macros::{classifier, xdp};
    use aya_ebpf::programs::{TcContext, XdpContext};
    use aya_log_ebpf::trace;
    use reroute_common::control::Command;
    use reroute_ebpf::cell::Shared;
    use reroute_ebpf::kernel::{SkbPacket, XdpPacket};
    use reroute_ebpf::{Verdict, control as commands, egress as out, ingress as into, measure};

    #[xdp(frags)]
    pub fn ingress(ctx: XdpContext) -> u32 {
        let packet = XdpPacket { md: ctx.ctx };
        match into::ingress(packet, packet.interface()) {
            Verdict::Pass => xdp_action::XDP_PASS,
            Verdict::Drop => {
                trace!(&ctx, "dropped {} bytes", ctx.data_end() - ctx.data());
                xdp_action::XDP_DROP
            }
            Verdict::Reflect => xdp_action::XDP_TX,
        }
    }

    /// What passes is left to those behind us (TCX_NEXT on TCX): only a drop or a reflected pulse is final.
    #[classifier]
    pub fn ingress_tc(ctx: TcContext) -> i32 {
        let packet = SkbPacket { skb: ctx.skb.skb };
        match into::ingress(packet, packet.interface()) {
            Verdict::Pass => TC_ACT_UNSPEC,
            Verdict::Drop => TC_ACT_SHOT as i32,
            // SAFETY: takes an index and flags; 0: out by the same interface.
            Verdict::Reflect => unsafe { bpf_redirect(packet.interface(), 0) as i32 },
        }
    }

    #[classifier]
    pub fn egress(ctx: TcContext) -> i32 {
        let packet = SkbPacket { skb: ctx.skb.skb };
        match out::egress(packet, packet.interface()) {
            Verdict::Pass | Verdict::Reflect => TC_ACT_UNSPEC,
            Verdict::Drop => {
                trace!(&ctx, "held back {} bytes", ctx.len());
                TC_ACT_SHOT as i32
            }
        }
    }

    /// Run by userspace alone, with a command as its packet.
    #[xdp]
    pub fn control(ctx: XdpContext) -> u32 {
        let (start, end) = (ctx.data(), ctx.data_end());
        if start + size_of::<Command>() <= end {
            // SAFETY: a whole command lies between start and end, and nobody else sees this packet.
            commands::run(unsafe { Shared::new(start as *mut Command) });
        }
        xdp_action::XDP_PASS
    }

    /// Lets everything through: what the other end of a veth pair needs for replies sent by XDP to arrive.
    #[xdp]
    pub fn pass(_ctx: XdpContext) -> u32 {
        xdp_action::XDP_PASS
    }

    /// Like [`ingress`], run by the benchmark alone: of the next frame each time.
    #[xdp(frags)]
    pub fn measure_ingress(ctx: XdpContext) -> u32 {
        let packet = XdpPacket { md: ctx.ctx };
        if !measure::packet(packet, ctx.data(), ctx.data_end()) {
            return xdp_action::XDP_ABORTED;
        }
        match into::ingress(packet, packet.interface()) {
            Verdict::Pass => xdp_action::XDP_PASS,
            Verdict::Drop => xdp_action::XDP_DROP,
            Verdict::Reflect => xdp_action::XDP_TX,
        }
    }

    /// What that costs without the judging.
    #[xdp(frags)]
    pub fn measure_ingress_base(ctx: XdpContext) -> u32 {
        let packet = XdpPacket { md: ctx.ctx };
        match measure::packet(packet, ctx.data(), ctx.data_end()) {
            true => xdp_action::XDP_PASS,
            false => xdp_action::XDP_ABORTED,
        }
    }

    /// Like [`egress`], run by the benchmark alone: of the next frame each time.
    #[classifier]
    pub fn measure_egress(ctx: TcContext) -> i32 {
        if !measure::segment(ctx.data(), ctx.data_end()) {
            return TC_ACT_SHOT as i32;
        }
        let packet = SkbPacket { skb: ctx.skb.skb };
        match out::egress(packet, packet.interface()) {
            Verdict::Pass | Verdict::Reflect => TC_ACT_UNSPEC,
            Verdict::Drop => TC_ACT_SHOT as i32,
        }
    }

    /// What that costs without the judging.
    #[classifier]
    pub fn measure_egress_base(ctx: TcContext) -> i32 {
        match measure::segment(ctx.data(), ctx.data_end()) {
            true => TC_ACT_UNSPEC,
            false => TC_ACT_SHOT as i32,
        }
    }

    /// One look of the timer at all lines, run by the benchmark alone.
    #[xdp]
    pub fn measure_scan(_ctx: XdpContext) -> u32 {
        measure::scan();
        xdp_action::XDP_PASS
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! {
        loop {}
    }
}
