//! Exact counts: the same frames through the programs, and through `tshark`, per client and to the unit.
//!
//! Frames are built by code, or come from captures of the lab (`data/`); they are replayed in the order of capture, those to
//! the service through ingress, those from it through egress. What each count means, and how it is read in a capture:
//!
//! - **packets**: wire segments: Ethernet frames as they are on the wire, to (`rx`) or from (`tx`) a service address, that IP
//!   calls TCP, and that name the service port or cannot be read so far (a fragment, a header cut short). All of them,
//!   whatever TCP makes of them: repeated, out of place, of no connection. A super-packet counts as the segments it is cut to.
//! - **bytes**: of those frames from the first of the Ethernet header to the last of the padding, VLAN tags included, check
//!   sequence not: `frame.len`.
//! - **client**: the host whose address on this network is the frame's other end; host 0 gathers all addresses of nobody.
//! - **opened**: connections whose SYN has come from the client, whether they were ever answered: `tcp.stream`s with such a
//!   SYN. A SYN sent again opens nothing. What follows counts of a connection opened in sight alone (or, where the
//!   server has a socket for it, from then on).
//! - **closed**, **reset**: a connection ends once: by the first FIN of either end it is closed, by an RST of either end
//!   before any FIN it is reset. Both are seen whether or not the other end agrees.
//! - **retransmitted**: segments that hold at least one sequence number (a byte's, or those of SYN and FIN: RFC 9293 §3.4)
//!   that this direction of the connection has shown before, until it is reset. So a keepalive with a byte is one, one
//!   without is none. Whether it was lost or only late before, or how late, does not matter: tshark judges by time and is
//!   not asked; [`reference`] is.
//! - **calls**: RPC calls (RFC 5531 records) by class: null (procedure 0), read (READ), write (WRITE, COMMIT), metadata (all
//!   others), counted with their last byte, once all bytes before it have come. A call with the XID of one that still waits
//!   on the same connection is the same call.
//! - **replies**: those that answer a call still waiting on their connection, in that call's class, counted as soon as XID and
//!   type have left.
//! - Every other frame is foreign: it counts nowhere.
//!
//! The programs run in shadow mode: they drop nothing, whatever a frame looks like.

mod cases;
mod compare;
mod ipv6;
mod nfs;
mod odd;
mod real;
mod reference;
mod traffic;
mod tshark;
