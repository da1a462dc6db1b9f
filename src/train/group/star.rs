//! Processes connected by TCP, each with a connection to process 0. Transfers small messages and detects processes that
//! end.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::launch::Meeting;
use super::store::Store;

/// First bytes of a connection.
const MAGIC: [u8; 8] = *b"d2otrn.1";
/// How long processes wait for each other at the start.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a connection may take to identify itself.
const HELLO: Duration = Duration::from_secs(5);
/// Interval of heartbeats, and the silence after which a process counts as dead.
const BEAT_EVERY: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(30);
/// Maximum length of the payload of a message, bytes.
const LONGEST: u32 = 1 << 26;

/// Kinds of messages.
const DATA: u8 = 0;
const BEAT: u8 = 1;
/// A process ends with an error that has been reported.
const FAILED: u8 = 2;
/// A process is done.
const DONE: u8 = 3;

/// How a process was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loss {
    /// An error has been reported, or process 0 has announced the loss of a process.
    Reported,
    /// The connection failed in this way, without a report.
    Silent(String),
}

/// Called when a process is lost, with its name and how it was lost.
pub(super) type OnLoss = Arc<dyn Fn(&str, &Loss) + Send + Sync>;

/// Connections between process 0 and each other process.
#[derive(Debug)]
pub(super) struct Star {
    links: Vec<Link>,
    first: bool,
    done: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Link {
    peer: String,
    writer: Arc<Mutex<TcpStream>>,
    inbox: Receiver<Vec<u8>>,
}

impl Star {
    /// Connects process `rank` of `size`, named `name`, to the others. `on_loss` is called on another thread.
    ///
    /// # Errors
    /// If the port is in use, or a process does not connect in time.
    pub(super) fn meet(
        meeting: &Meeting,
        rank: usize,
        size: usize,
        name: &str,
        on_loss: OnLoss,
    ) -> anyhow::Result<Self> {
        let Meeting { host, port, key } = meeting;
        let deadline = Instant::now() + PATIENCE;
        let mut store = match key {
            Some(key) => Some((Store::new(connect(host, *port, deadline)?, PATIENCE)?, key)),
            None => None,
        };
        let streams = if rank == 0 {
            let own = if store.is_some() { 0 } else { *port };
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, own))
                .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, own)));
            let listener = listener.with_context(|| format!("process 0 cannot listen on port {own}"))?;
            if let Some((store, key)) = &mut store {
                store.set(key, listener.local_addr()?.port().to_string().as_bytes())?;
            }
            accept(&listener, size, name, deadline)?
        } else {
            let port = match &mut store {
                Some((store, key)) => String::from_utf8(store.get(key)?)?.parse().context("the port of process 0")?,
                None => *port,
            };
            let mut stream = connect(host, port, deadline)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            hello(&mut stream, rank, size, name)?;
            let (found, peer) = greeted(&mut stream, size).context("the answer of process 0")?;
            anyhow::ensure!(found == 0, "expected process 0 at {host}:{port}, found process {found}");
            vec![(peer, stream)]
        };
        Self::start(streams, rank == 0, on_loss)
    }

    fn start(streams: Vec<(String, TcpStream)>, first: bool, on_loss: OnLoss) -> anyhow::Result<Self> {
        let done = Arc::new(AtomicBool::new(false));
        let writers = streams
            .iter()
            .map(|(_, s)| Ok(Arc::new(Mutex::new(s.try_clone()?))))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let links = streams.into_iter().zip(&writers).map(|((peer, stream), writer)| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(SILENCE))?;
            let (sender, inbox) = channel();
            let (name, on_loss, others) = (peer.clone(), on_loss.clone(), writers.clone());
            std::thread::spawn(move || {
                if let Err(loss) = read(stream, &sender) {
                    // Process 0 informs the other processes.
                    for other in &others {
                        let _ = send(other, FAILED, &[]);
                    }
                    on_loss(&name, &loss);
                }
            });
            Ok(Link { peer, writer: writer.clone(), inbox })
        });
        let links = links.collect::<anyhow::Result<Vec<_>>>()?;
        let ended = done.clone();
        std::thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                for writer in &writers {
                    let _ = send(writer, BEAT, &[]);
                }
                std::thread::sleep(BEAT_EVERY);
            }
        });
        Ok(Self { links, first, done })
    }

    /// `own` of all processes, concatenated in rank order.
    ///
    /// # Errors
    /// If a process has already finished, or a connection is lost.
    pub(super) fn gather_bytes(&self, own: &[u8]) -> anyhow::Result<Vec<u8>> {
        let receive = |link: &Link| link.inbox.recv().with_context(|| format!("{} stopped sending", link.peer));
        let mut all = own.to_vec();
        if self.first {
            for link in &self.links {
                all.extend(receive(link)?);
            }
            for link in &self.links {
                // The reader thread detects a lost connection.
                let _ = send(&link.writer, DATA, &all);
            }
            return Ok(all);
        }
        let link = self.links.first().context("no connection to process 0")?;
        let _ = send(&link.writer, DATA, own);
        receive(link)
    }

    /// Ends the connections once all processes have called this.
    pub(super) fn finish(&self) {
        self.end(DONE);
        for link in &self.links {
            // Ends with the reader thread.
            while link.inbox.recv().is_ok() {}
        }
    }

    /// Informs the other processes that this process ends with an error that it has reported.
    pub(super) fn fail(&self) {
        self.end(FAILED);
        // A process that ends with unread bytes resets its connections, and its last message may be lost.
        std::thread::sleep(Duration::from_millis(200));
    }

    fn end(&self, kind: u8) {
        self.done.store(true, Ordering::SeqCst);
        for link in &self.links {
            let _ = send(&link.writer, kind, &[]);
        }
    }
}

/// Connects to `host` and `port`, with retries until `deadline`.
fn connect(host: &str, port: u16, deadline: Instant) -> anyhow::Result<TcpStream> {
    loop {
        match TcpStream::connect((host, port)) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("no answer at {host}:{port} for {} s", PATIENCE.as_secs()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Names and connections of processes 1 to `size` − 1, in this order. Other connections are dropped.
fn accept(
    listener: &TcpListener,
    size: usize,
    name: &str,
    deadline: Instant,
) -> anyhow::Result<Vec<(String, TcpStream)>> {
    listener.set_nonblocking(true)?;
    let mut found: Vec<Option<(String, TcpStream)>> = (1..size).map(|_| None).collect();
    while let Some(missing) = found.iter().position(Option::is_none) {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let waited = PATIENCE.as_secs();
                anyhow::ensure!(Instant::now() < deadline, "process {} did not connect within {waited} s", missing + 1);
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(HELLO))?;
        if let Ok((rank, peer)) = greeted(&mut stream, size)
            && let Some(place @ None) = rank.checked_sub(1).and_then(|i| found.get_mut(i))
            && hello(&mut stream, 0, size, name).is_ok()
        {
            *place = Some((peer, stream));
        }
    }
    Ok(found.into_iter().flatten().collect())
}

/// Sends rank, number of processes and name of this process.
fn hello(stream: &mut TcpStream, rank: usize, size: usize, name: &str) -> anyhow::Result<()> {
    let mut text = MAGIC.to_vec();
    for number in [rank, size, name.len()] {
        text.extend(u32::try_from(number)?.to_le_bytes());
    }
    text.extend(name.as_bytes());
    Ok(stream.write_all(&text)?)
}

/// Receives rank and name of the process at the other end, which must be one of `size`.
fn greeted(stream: &mut TcpStream, size: usize) -> anyhow::Result<(usize, String)> {
    const LONGEST_NAME: usize = 1 << 10;
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    let number = |at: usize| -> anyhow::Result<usize> {
        Ok(usize::try_from(u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]))?)
    };
    anyhow::ensure!(head.starts_with(&MAGIC), "not a process of this version of d2o");
    let (rank, found, length) = (number(8)?, number(12)?, number(16)?);
    anyhow::ensure!(
        found == size && rank < size && length <= LONGEST_NAME,
        "process {rank} of {found}, expected {size}"
    );
    let mut name = vec![0; length];
    stream.read_exact(&mut name)?;
    Ok((rank, String::from_utf8_lossy(&name).into_owned()))
}

fn send(writer: &Mutex<TcpStream>, kind: u8, payload: &[u8]) -> anyhow::Result<()> {
    let mut message = vec![kind];
    message.extend(u32::try_from(payload.len())?.to_le_bytes());
    message.extend(payload);
    let mut stream = writer.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(stream.write_all(&message)?)
}

/// Forwards messages to `inbox` until the other end is done.
fn read(mut stream: TcpStream, inbox: &Sender<Vec<u8>>) -> Result<(), Loss> {
    let silent = |error: std::io::Error| {
        Loss::Silent(match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("no message for {} s", SILENCE.as_secs()),
            ErrorKind::UnexpectedEof => "its connection was closed".to_owned(),
            _ => error.to_string(),
        })
    };
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).map_err(silent)?;
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length);
        if length > LONGEST {
            return Err(Loss::Silent(format!("it sent a message of {length} bytes")));
        }
        let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
        stream.read_exact(&mut payload).map_err(silent)?;
        match kind {
            DATA => _ = inbox.send(payload),
            BEAT => {}
            DONE => return Ok(()),
            FAILED => return Err(Loss::Reported),
            other => return Err(Loss::Silent(format!("it sent a message of kind {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Losses = Receiver<(usize, String, Loss)>;

    /// Runs `work` as three processes at a free port, each on its own thread. Returns the losses that they report.
    fn run(work: impl Fn(usize, Star) + Clone + Send + 'static) -> Losses {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (sender, losses) = channel();
        let threads: Vec<_> = (0..3)
            .map(|rank| {
                let (work, sender) = (work.clone(), sender.clone());
                std::thread::spawn(move || {
                    let meeting = Meeting { host: "127.0.0.1".to_owned(), port, key: None };
                    let on_loss: OnLoss = Arc::new(move |peer: &str, loss: &Loss| {
                        let _ = sender.send((rank, peer.to_owned(), loss.clone()));
                    });
                    work(rank, Star::meet(&meeting, rank, 3, &format!("process {rank}"), on_loss).unwrap());
                })
            })
            .collect();
        // A foreign connection is dropped.
        let _ = TcpStream::connect(("127.0.0.1", port)).and_then(|mut s| s.write_all(&[b'x'; 20]));
        for thread in threads {
            thread.join().unwrap();
        }
        losses
    }

    #[test]
    fn messages_come_in_the_order_of_the_processes() {
        let losses = run(|rank, star| {
            for round in 0..3 {
                let own = [u8::try_from(rank).unwrap(), round];
                assert_eq!(star.gather_bytes(&own).unwrap(), [0, round, 1, round, 2, round]);
            }
            star.finish();
        });
        assert!(losses.try_recv().is_err());
    }

    #[test]
    fn a_process_that_ends_is_named() {
        let losses = run(|rank, star| {
            if rank == 1 {
                // As if the process were killed: its sockets are closed.
                for link in &star.links {
                    link.writer.lock().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
                }
                return;
            }
            let _ = star.gather_bytes(&[0]).unwrap_err();
        });
        // The first loss that processes 0 and 2 detect. Process 0 may also detect that 2 has ended.
        let mut first = std::collections::BTreeMap::new();
        for (rank, who, loss) in losses.iter().filter(|(rank, ..)| *rank != 1) {
            first.entry(rank).or_insert((who, loss));
            if first.len() == 2 {
                break;
            }
        }
        let closed = Loss::Silent("its connection was closed".to_owned());
        let expected = [(0, ("process 1".to_owned(), closed)), (2, ("process 0".to_owned(), Loss::Reported))];
        assert_eq!(first.into_iter().collect::<Vec<_>>(), expected);
    }
}
