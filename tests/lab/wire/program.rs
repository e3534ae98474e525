//! The programs on a disturbed link, as the kernel takes them: eight bytes an instruction.

/// `skb->mark` of frames that were late already.
pub const MARK: u32 = 0x6c61_7465;
/// Of `struct __sk_buff`.
const OFFSET_OF_MARK: i16 = 8;
const OFFSET_OF_LEN: i16 = 0;
const ETHERNET: u32 = 14;
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;
const GET_PRANDOM_U32: i32 = 7;
const REDIRECT: i32 = 23;
/// In an Ethernet address of the lab: the node's kind.
const KIND_IN_MAC: i32 = 3;
const SOURCE_MAC: i32 = 6;
const IP_PROTOCOL: i32 = 23;
const TCP: i32 = 6;

const fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}
const fn set(register: u8, value: i32) -> u64 {
    op(0xb7, register, 0, 0, value)
}
const fn copy(to: u8, from: u8) -> u64 {
    op(0xbf, to, from, 0, 0)
}
const fn call(helper: i32) -> u64 {
    op(0x85, 0, 0, 0, helper)
}
/// r0 = the frame's byte there; ends the program with 0 (pass) where there is none. Wants the context in r6.
const fn load_byte(at: i32) -> u64 {
    op(0x30, 0, 0, 0, at)
}
const EXIT: u64 = 0x95;

/// Passes, unless the jump before it went over that.
const PASS_ELSE_DROP: [u64; 4] = [set(0, TCX_NEXT), EXIT, set(0, TCX_DROP), EXIT];

/// Passes everything until the switch is on, an array whose first word is not 0 then; from there on `program`.
pub fn when(switch: i32, program: Vec<u64>) -> Vec<u64> {
    const VALUE_OF_MAP: u8 = 2;
    let value = [op(0x18, 2, VALUE_OF_MAP, 0, switch), 0, op(0x61, 2, 2, 0, 0)];
    let unless_off = [op(0x55, 2, 0, 2, 0), set(0, TCX_NEXT), EXIT];
    [value.as_slice(), &unless_off, &program].concat()
}

pub fn drop_all() -> Vec<u64> {
    vec![set(0, TCX_DROP), EXIT]
}

pub fn drop_percent(percent: u32) -> Vec<u64> {
    let modulo = op(0x94, 0, 0, 0, 100);
    let if_below = op(0xa5, 0, 0, 2, percent as i32);
    [vec![call(GET_PRANDOM_U32), modulo, if_below], PASS_ELSE_DROP.to_vec()].concat()
}

/// Frames with more than so many bytes behind their Ethernet header.
pub fn drop_longer(bytes: u32) -> Vec<u64> {
    let length = op(0x61, 2, 1, OFFSET_OF_LEN, 0);
    let if_above = op(0x25, 2, 0, 2, (bytes + ETHERNET) as i32);
    [vec![length, if_above], PASS_ELSE_DROP.to_vec()].concat()
}

/// Frames from (or to) nodes of this kind.
pub fn drop_kind(kind: u8, by_source: bool) -> Vec<u64> {
    let at = KIND_IN_MAC + if by_source { SOURCE_MAC } else { 0 };
    let if_equal = op(0x15, 0, 0, 2, kind.into());
    [vec![copy(6, 1), load_byte(at), if_equal], PASS_ELSE_DROP.to_vec()].concat()
}

/// Hands frames to another interface, unless they were there already.
pub fn redirect(interface: u32, tcp_only: bool) -> Vec<u64> {
    let marked = [op(0x61, 2, 1, OFFSET_OF_MARK, 0), op(0x15, 2, 0, 0, MARK as i32)];
    let tcp = [copy(6, 1), load_byte(IP_PROTOCOL), op(0x55, 0, 0, 0, TCP)];
    let redirect = [set(1, interface as i32), set(2, 0), call(REDIRECT), EXIT];
    let mut program = [marked.as_slice(), if tcp_only { &tcp } else { &[] }, &redirect].concat();
    // Both jumps lead to the end, which passes.
    let end = program.len();
    for (at, instruction) in program.iter_mut().enumerate() {
        if matches!(*instruction as u8, 0x15 | 0x55) {
            *instruction |= ((end - at - 1) as u64) << 16;
        }
    }
    program.extend([set(0, TCX_NEXT), EXIT]);
    program
}
