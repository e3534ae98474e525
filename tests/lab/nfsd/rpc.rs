//! ONC RPC over TCP (RFC 5531): records in, replies out, one task per call.

use nfs3_types::rpc::{RPC_VERSION_2, accept_stat, fragment_header, msg_body, rpc_msg};
use nfs3_types::xdr_codec::Unpack;
use std::io::{self, Cursor};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest record: a WRITE and its header.
const RECORD: usize = crate::read::TRANSFER as usize + 4096;

/// A call, unpacked as far as its arguments.
#[derive(Clone, Debug)]
pub struct Call {
    pub xid: u32,
    pub program: u32,
    pub version: u32,
    pub procedure: u32,
    record: Vec<u8>,
    args: usize,
}

impl Call {
    pub fn args(&self) -> &[u8] {
        self.record.get(self.args..).unwrap_or(&[])
    }
}

/// What is wrong with a stream; it cannot be followed any further.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("a record of more than {RECORD} bytes")]
    TooLong,
    #[error("a record that is no RPC call")]
    NotACall,
}

/// The next call of a stream; None at its end.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Call>, StreamError> {
    let mut record = Vec::new();
    loop {
        let mut mark = [0; 4];
        match stream.read_exact(&mut mark).await {
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof && record.is_empty() => return Ok(None),
            other => other?,
        };
        let mark = fragment_header::from(mark);
        let (begin, len) = (record.len(), mark.fragment_length() as usize);
        if begin + len > RECORD {
            return Err(StreamError::TooLong);
        }
        record.resize(begin + len, 0);
        stream.read_exact(&mut record[begin..]).await?;
        if mark.eof() {
            break;
        }
    }
    let mut cursor = Cursor::new(record.as_slice());
    let (message, _) = rpc_msg::unpack(&mut cursor).map_err(|_| StreamError::NotACall)?;
    let args = cursor.position() as usize;
    let msg_body::CALL(body) = &message.body else { return Err(StreamError::NotACall) };
    if body.rpcvers != RPC_VERSION_2 {
        return Err(StreamError::NotACall);
    }
    let (xid, program, version, procedure) = (message.xid, body.prog, body.vers, body.proc);
    drop(message);
    Ok(Some(Call { xid, program, version, procedure, record, args }))
}

/// How a call was accepted.
#[derive(Clone, Debug)]
pub enum Answer {
    Success(Vec<u8>),
    NoProgram,
    NoVersion(u32),
    NoProcedure,
    Garbage,
    SystemError,
}

/// The reply's record, with its mark.
pub fn reply(xid: u32, answer: &Answer) -> Vec<u8> {
    let empty = Vec::new();
    let (stat, body) = match answer {
        Answer::Success(body) => (accept_stat::SUCCESS, body),
        Answer::NoProgram => (accept_stat::PROG_UNAVAIL, &empty),
        Answer::NoVersion(_) => (accept_stat::PROG_MISMATCH, &empty),
        Answer::NoProcedure => (accept_stat::PROC_UNAVAIL, &empty),
        Answer::Garbage => (accept_stat::GARBAGE_ARGS, &empty),
        Answer::SystemError => (accept_stat::SYSTEM_ERR, &empty),
    };
    // xid, REPLY, MSG_ACCEPTED, verifier AUTH_NONE of length 0, accept_stat.
    let mut words = vec![xid, 1, 0, 0, 0, stat as u32];
    if let Answer::NoVersion(version) = answer {
        words.extend([*version, *version]);
    }
    let len = words.len() * 4 + body.len();
    let mut bytes = Vec::with_capacity(4 + len);
    bytes.extend_from_slice(&fragment_header::new(len as u32, true).into_xdr_buf());
    words.iter().for_each(|w| bytes.extend_from_slice(&w.to_be_bytes()));
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_record_in_fragments_is_one_call() {
        let words: Vec<u8> =
            [7u32, 0, 2, 100_003, 3, 1, 0, 0, 0, 0, 42].iter().flat_map(|w| w.to_be_bytes()).collect();
        let mut stream = Vec::new();
        for (part, last) in [(&words[..10], false), (&words[10..11], false), (&words[11..], true)] {
            stream.extend_from_slice(&fragment_header::new(part.len() as u32, last).into_xdr_buf());
            stream.extend_from_slice(part);
        }
        let mut stream = stream.as_slice();
        let call = read(&mut stream).await.unwrap().unwrap();
        assert_eq!((call.xid, call.program, call.version, call.procedure), (7, 100_003, 3, 1));
        assert_eq!(call.args(), 42u32.to_be_bytes());
        assert!(read(&mut stream).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_stream_that_is_no_rpc_is_an_error() {
        let mut stream: &[u8] = &[0xff; 64];
        assert!(matches!(read(&mut stream).await, Err(StreamError::TooLong)));
        let reply = reply(1, &Answer::Success(Vec::new()));
        assert!(matches!(read(&mut reply.as_slice()).await, Err(StreamError::NotACall)));
    }
}
