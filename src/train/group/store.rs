//! Client of the `TCPStore` of c10d, the key-value store of torchrun's agent. The protocol is that of
//! `TCPStoreBackend.hpp` of `PyTorch` 2.11.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context as _;

/// `validationMagicNumber`.
const MAGIC: u32 = 0x3C85_F7CE;
// QueryType.
const VALIDATE: u8 = 0;
const SET: u8 = 1;
const GET: u8 = 3;
const WAIT: u8 = 6;
/// `WaitResponseType::STOP_WAITING`.
const STOP_WAITING: u8 = 0;
/// Maximum length of a value, bytes.
const LONGEST: u64 = 1 << 16;

/// A connection to a store.
#[derive(Debug)]
pub(super) struct Store(TcpStream);

impl Store {
    /// Opens the protocol on a connection to the store. An answer may take `patience`.
    ///
    /// # Errors
    /// If the connection fails.
    pub(super) fn new(mut stream: TcpStream, patience: Duration) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        let mut hello = vec![VALIDATE];
        hello.extend(MAGIC.to_ne_bytes());
        stream.write_all(&hello)?;
        Ok(Self(stream))
    }

    /// Sets `key` to `value`, and waits until the store holds it.
    ///
    /// # Errors
    /// If the connection fails, or the store returns another value.
    pub(super) fn set(&mut self, key: &str, value: &[u8]) -> anyhow::Result<()> {
        let mut query = vec![SET];
        append(&mut query, key.as_bytes());
        append(&mut query, value);
        self.0.write_all(&query)?;
        let held = self.get(key)?;
        anyhow::ensure!(held == value, "the store at {} did not keep `{key}`", self.0.peer_addr()?);
        Ok(())
    }

    /// Waits until `key` has a value, and returns it.
    ///
    /// # Errors
    /// If the connection fails, or an answer violates the protocol.
    pub(super) fn get(&mut self, key: &str) -> anyhow::Result<Vec<u8>> {
        let mut query = vec![WAIT];
        query.extend(1_u64.to_ne_bytes());
        append(&mut query, key.as_bytes());
        self.0.write_all(&query)?;
        let mut answer = [0];
        self.0.read_exact(&mut answer).with_context(|| format!("cannot wait for `{key}` of torchrun's store"))?;
        anyhow::ensure!(answer[0] == STOP_WAITING, "torchrun's store answered {} to a wait for `{key}`", answer[0]);
        let mut query = vec![GET];
        append(&mut query, key.as_bytes());
        self.0.write_all(&query)?;
        let mut length = [0; 8];
        self.0.read_exact(&mut length)?;
        let length = u64::from_ne_bytes(length);
        anyhow::ensure!(length <= LONGEST, "torchrun's store: `{key}` has {length} bytes");
        let mut value = vec![0; usize::try_from(length)?];
        self.0.read_exact(&mut value)?;
        Ok(value)
    }
}

/// Appends the length of `bytes`, then `bytes`.
fn append(query: &mut Vec<u8>, bytes: &[u8]) {
    query.extend((bytes.len() as u64).to_ne_bytes());
    query.extend(bytes);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{Read, Write as _};
    use std::net::TcpListener;

    use super::*;

    fn string(stream: &mut TcpStream) -> Vec<u8> {
        let mut length = [0; 8];
        stream.read_exact(&mut length).unwrap();
        let mut bytes = vec![0; usize::try_from(u64::from_ne_bytes(length)).unwrap()];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Answers one connection like the daemon of `TCPStore` until it is closed. `broken` is the answer to a wait.
    fn serve(listener: &TcpListener, broken: u8) {
        let (mut stream, _) = listener.accept().unwrap();
        let mut values: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).unwrap();
        assert_eq!(hello, [0, 0xCE, 0xF7, 0x85, 0x3C]);
        let mut query = [0];
        while stream.read_exact(&mut query).is_ok() {
            match query[0] {
                SET => {
                    let key = string(&mut stream);
                    let value = string(&mut stream);
                    values.insert(key, value);
                }
                WAIT => {
                    let mut count = [0; 8];
                    stream.read_exact(&mut count).unwrap();
                    assert_eq!(u64::from_ne_bytes(count), 1);
                    assert!(values.contains_key(&string(&mut stream)));
                    stream.write_all(&[broken]).unwrap();
                }
                GET => {
                    let value = &values[&string(&mut stream)];
                    stream.write_all(&(value.len() as u64).to_ne_bytes()).unwrap();
                    stream.write_all(value).unwrap();
                }
                other => panic!("query {other}"),
            }
        }
    }

    #[test]
    fn a_value_comes_back() {
        for answer in [STOP_WAITING, 1] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let server = std::thread::spawn(move || serve(&listener, answer));
            let mut store = Store::new(TcpStream::connect(address).unwrap(), Duration::from_secs(5)).unwrap();
            let set = store.set("d2o/r/0/port", b"29501");
            if answer == STOP_WAITING {
                set.unwrap();
                assert_eq!(store.get("d2o/r/0/port").unwrap(), b"29501");
            } else {
                assert!(set.unwrap_err().to_string().contains("answered 1"));
            }
            drop(store);
            server.join().unwrap();
        }
    }
}
