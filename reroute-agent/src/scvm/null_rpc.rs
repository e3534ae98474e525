//! The NULL procedure of the local server (RFC 5531 §11.1, RFC 1813 §3.3.0): does it answer at all?
//!
//! At most one connection is open, and at most one call outstanding on it: a hung server is not given a new
//! connection with every probe. An answer counts for the probe during which it comes, whichever call it belongs to;
//! one that came before says nothing about now.

use reroute_core::ids::MS;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LAST_FRAGMENT: u32 = 1 << 31;
const NFS_PROGRAM: u32 = 100_003;
const NFS_V3: u32 = 3;
/// A reply to NULL is 24 bytes; with an odd verifier it is still far below this.
const MAX_RECORD: usize = 4096;

pub struct Prober {
    server: SocketAddr,
    limit: Duration,
    xid: u32,
    open: Option<Open>,
}

struct Open {
    stream: TcpStream,
    /// The call without a reply.
    outstanding: Option<Outstanding>,
    received: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Outstanding {
    xid: u32,
    sent: Instant,
}

/// ns, as the machines count.
fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Prober {
    pub fn new(server: SocketAddr, limit_ns: u64) -> Prober {
        Prober { server, limit: Duration::from_nanos(limit_ns.max(MS)), xid: 0x5252_0000, open: None }
    }

    /// Whether the server answered in time, and how long that took (or was waited), ns.
    pub async fn probe(&mut self) -> (bool, u64) {
        let began = Instant::now();
        let limit = self.limit;
        let outcome = tokio::time::timeout(limit, self.ask()).await;
        let answered = matches!(outcome, Ok(Ok(())));
        if let Ok(Err(error)) = outcome {
            tracing::debug!(%error, "NULL RPC to the local server");
            self.open = None;
        }
        (answered, ns(began.elapsed()))
    }

    async fn ask(&mut self) -> io::Result<()> {
        let fresh = self.open.is_none();
        match self.call().await {
            // The connection was of a server that is gone: another may be there now.
            Err(_) if !fresh => {
                self.open = None;
                self.call().await
            }
            result => result,
        }
    }

    async fn call(&mut self) -> io::Result<()> {
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let stream = TcpStream::connect(self.server).await?;
                stream.set_nodelay(true)?;
                none.insert(Open { stream, outstanding: None, received: Vec::new() })
            }
        };
        open.forget_old_answers()?;
        if open.outstanding.is_none() {
            self.xid = self.xid.wrapping_add(1);
            // Marked first: a write that is cancelled half-way must not be followed by another call.
            open.outstanding = Some(Outstanding { xid: self.xid, sent: Instant::now() });
            open.stream.write_all(&null_call(self.xid)).await?;
        }
        open.answer().await
    }

    /// A call of an earlier probe has no answer yet.
    pub fn waits(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.outstanding.is_some())
    }

    /// Waits for what [`Prober::probe`] gave up: how long the answer took, ns; `None`: the connection has ended. May be
    /// dropped, and waited for again.
    pub async fn late_answer(&mut self) -> Option<u64> {
        let open = self.open.as_mut()?;
        let sent = open.outstanding?.sent;
        if let Err(error) = open.answer().await {
            tracing::debug!(%error, "NULL RPC to the local server");
            self.open = None;
            return None;
        }
        Some(ns(sent.elapsed()))
    }

    /// Nothing is suspected any more: the server need not keep our connection.
    pub fn close(&mut self) {
        if self.open.as_ref().is_some_and(|o| o.outstanding.is_none()) {
            self.open = None;
        }
    }
}

impl Open {
    /// Waits for the reply to the outstanding call; without one there is nothing to wait for.
    async fn answer(&mut self) -> io::Result<()> {
        while let Some(Outstanding { xid, .. }) = self.outstanding {
            if let Some(record) = take_record(&mut self.received)? {
                if is_reply(&record, xid) {
                    self.outstanding = None;
                }
            } else if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Takes in what has come since the last probe.
    fn forget_old_answers(&mut self) -> io::Result<()> {
        loop {
            match self.stream.try_read_buf(&mut self.received) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        while let Some(record) = take_record(&mut self.received)? {
            if self.outstanding.is_some_and(|call| is_reply(&record, call.xid)) {
                self.outstanding = None;
            }
        }
        Ok(())
    }
}

/// A reply message (RFC 5531 §9) to this call; accepted or not, somebody answered.
fn is_reply(record: &[u8], xid: u32) -> bool {
    record.get(..8) == Some(&[xid.to_be_bytes(), 1u32.to_be_bytes()].concat()[..])
}

fn null_call(xid: u32) -> Vec<u8> {
    let body = [xid, 0, 2, NFS_PROGRAM, NFS_V3, 0, 0, 0, 0, 0];
    let mark = LAST_FRAGMENT | (body.len() as u32 * 4);
    std::iter::once(mark).chain(body).flat_map(u32::to_be_bytes).collect()
}

/// The next whole record, without its mark.
fn take_record(received: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let Some(mark) = received.first_chunk::<4>() else { return Ok(None) };
    let mark = u32::from_be_bytes(*mark);
    let len = (mark & !LAST_FRAGMENT) as usize;
    if mark & LAST_FRAGMENT == 0 || len > MAX_RECORD {
        return Err(io::Error::other("not a reply to NULL"));
    }
    if received.len() < 4 + len {
        return Ok(None);
    }
    let record = received[4..4 + len].to_vec();
    received.drain(..4 + len);
    Ok(Some(record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const LIMIT: u64 = 100 * MS;

    async fn answer(stream: &mut TcpStream) {
        let mut call = [0; 44];
        stream.read_exact(&mut call).await.unwrap();
        assert_eq!(call[..4], (LAST_FRAGMENT | 40).to_be_bytes());
        assert_eq!(call[12..16], 2u32.to_be_bytes(), "RPC version 2");
        let mut reply = (LAST_FRAGMENT | 24).to_be_bytes().to_vec();
        reply.extend_from_slice(&call[4..8]);
        reply.extend([1u32, 0, 0, 0, 0].into_iter().flat_map(u32::to_be_bytes));
        // In two pieces, as TCP may.
        stream.write_all(&reply[..7]).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(&reply[7..]).await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_is_an_answer_on_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut prober = Prober::new(listener.local_addr().unwrap(), LIMIT);
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream).await;
            answer(&mut stream).await;
        });
        assert!(prober.probe().await.0);
        assert!(prober.probe().await.0);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_hung_server_gets_one_connection_and_an_answer_from_before_counts_for_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut prober = Prober::new(listener.local_addr().unwrap(), LIMIT);
        // The kernel takes the connection; nobody answers.
        let (answered, took) = prober.probe().await;
        assert!(!answered && took >= LIMIT, "{took}");
        assert!(!prober.probe().await.0);
        let (mut stream, _) = listener.accept().await.unwrap();
        answer(&mut stream).await;
        prober.open.as_ref().unwrap().stream.readable().await.unwrap();
        assert!(!prober.probe().await.0, "it answered once, and hangs again");
        let back = async {
            tokio::task::yield_now().await;
            answer(&mut stream).await;
        };
        let ((), (answered, _)) = tokio::join!(back, prober.probe());
        assert!(answered, "the server came back while it was asked");
        let second = tokio::time::timeout(Duration::from_millis(20), listener.accept()).await;
        assert!(second.is_err(), "no second connection was made");
    }

    #[tokio::test]
    async fn nobody_there_is_no_answer_and_a_restarted_server_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut prober = Prober::new(address, 10 * LIMIT);
        let serve = async |listener: TcpListener| {
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream).await;
        };
        let (_, (answered, _)) = tokio::join!(serve(listener), prober.probe());
        assert!(answered);
        assert!(!prober.probe().await.0, "refused");
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let (_, (answered, _)) = tokio::join!(serve(socket.listen(8).unwrap()), prober.probe());
        assert!(answered);
    }
}
