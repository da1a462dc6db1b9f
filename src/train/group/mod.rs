//! The processes of a run: one alone, or several that share each batch and keep the same parameters.
//!
//! Processes started by mpiexec or srun communicate by MPI, those started by torchrun, or by srun with MASTER_ADDR, by
//! TCP. Gradients are exchanged by MPI on the CPU and by NCCL on CUDA devices.

mod launch;
mod mpi;
mod nccl;
mod star;
mod store;

pub use launch::{Launch, Meeting, Way};

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tch::{Device, Tensor};

use crate::commands::ExitStatus;

/// The processes of a run, and the rank of this process.
#[derive(Debug)]
pub struct Group {
    rank: usize,
    names: Vec<String>,
    control: Control,
    nccl: OnceCell<nccl::Group>,
}

/// Transport of small messages.
#[derive(Debug)]
enum Control {
    Alone,
    Mpi(mpi::World),
    Tcp(star::Star),
}

/// An error at a point where all processes end. All processes know of it, and one reports it.
#[derive(Debug)]
enum Agreed {
    /// This process reports it.
    Here(anyhow::Error),
    /// Another process reports it.
    Elsewhere,
}

impl std::fmt::Display for Agreed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here(error) => error.fmt(f),
            Self::Elsewhere => f.write_str("another process reports an error"),
        }
    }
}

impl std::error::Error for Agreed {}

impl Group {
    /// A single process.
    #[must_use]
    pub fn alone() -> Self {
        Self { rank: 0, names: vec!["this process".to_owned()], control: Control::Alone, nccl: OnceCell::new() }
    }

    /// Connects to the other processes of `launch`. Without `launch`, the group is a single process.
    ///
    /// # Errors
    /// If MPI is required and no library is found, or a process does not connect.
    pub fn meet(launch: Option<&Launch>) -> anyhow::Result<Self> {
        let Some(Launch { rank, size, way, .. }) = launch else { return Ok(Self::alone()) };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = format!("process {rank} of {size} ({host}, PID {})", std::process::id());
        let control = match way {
            Way::Mpi => Control::Mpi(mpi::World::join(*rank, *size)?),
            Way::Tcp(meeting) => Control::Tcp(star::Star::meet(meeting, *rank, *size, &name, Arc::new(end_with))?),
        };
        let group = Self { rank: *rank, names: vec![String::new(); *size], control, nccl: OnceCell::new() };
        let names = group.gather_bytes(name.as_bytes())?;
        Ok(Self { names: names.iter().map(|n| String::from_utf8_lossy(n).into_owned()).collect(), ..group })
    }

    /// Prepares the exchange of tensors on `device`.
    ///
    /// # Errors
    /// If the processes cannot exchange tensors on this device, or another process fails.
    pub fn attach(&self, device: Device) -> anyhow::Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let Device::Cuda(index) = device else {
            let here = matches!(self.control, Control::Tcp(_)).then(|| {
                anyhow::anyhow!(
                    "several processes on CPUs require MPI, which torchrun and MASTER_ADDR do not use: use mpiexec, or srun with MASTER_ADDR unset"
                )
            });
            return self.agree(here.map_or(Ok(()), Err));
        };
        let prepared = nccl::Nccl::load().and_then(|nccl| {
            let id = if self.rank == 0 { nccl.unique_id()? } else { nccl::UniqueId::NONE };
            Ok((nccl, id))
        });
        let (nccl, id) = self.agree(prepared)?;
        let ids = self.gather_bytes(id.bytes())?;
        let joined = nccl.join(nccl::UniqueId::read(&ids[0])?, self.rank, self.size(), index)?;
        let _ = self.nccl.set(joined);
        Ok(())
    }

    /// Rank of this process, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of processes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.names.len()
    }

    /// Whether this process has rank 0, and so writes the files.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// Names of all processes: rank, host and process ID.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Replaces the values of `tensor`, a contiguous vector, by the sums over all processes. All processes get the same
    /// bits. On the CPU the values are added in rank order.
    ///
    /// # Errors
    /// If MPI, NCCL or libtorch fails, or the exchange of tensors is not prepared.
    pub fn sum(&self, tensor: &Tensor) -> anyhow::Result<()> {
        match (&self.control, self.nccl.get()) {
            (Control::Alone, _) => Ok(()),
            (_, Some(nccl)) => nccl.sum(tensor),
            (Control::Mpi(world), None) => world.sum(tensor),
            (Control::Tcp(_), None) => Err(detached()),
        }
    }

    /// The tensors `own [...]` of all processes as `[processes, ...]`.
    ///
    /// # Errors
    /// If MPI, NCCL or libtorch fails, or the exchange of tensors is not prepared.
    pub fn gather(&self, own: &Tensor) -> anyhow::Result<Tensor> {
        match (&self.control, self.nccl.get()) {
            (Control::Alone, _) => Ok(own.f_unsqueeze(0)?),
            (_, Some(nccl)) => nccl.gather(own),
            (Control::Mpi(world), None) => world.gather(own),
            (Control::Tcp(_), None) => Err(detached()),
        }
    }

    /// Replaces the values of `tensor`, contiguous, by those of process 0.
    ///
    /// # Errors
    /// If MPI or NCCL fails, or the exchange of tensors is not prepared.
    pub fn broadcast(&self, tensor: &Tensor) -> anyhow::Result<()> {
        match (&self.control, self.nccl.get()) {
            (Control::Alone, _) => Ok(()),
            (_, Some(nccl)) => nccl.broadcast(tensor),
            (Control::Mpi(world), None) => world.broadcast(tensor),
            (Control::Tcp(_), None) => Err(detached()),
        }
    }

    /// For each of `flags`, whether any process has set it.
    ///
    /// # Errors
    /// If the communication between processes fails.
    pub fn any<const N: usize>(&self, flags: [bool; N]) -> anyhow::Result<[bool; N]> {
        let all = self.exchange(&flags.map(u8::from))?;
        Ok(std::array::from_fn(|i| all.iter().skip(i).step_by(N).any(|f| *f != 0)))
    }

    /// `result` if all processes succeeded. Otherwise an error in all of them, which the first failed process reports.
    ///
    /// # Errors
    /// If any process failed.
    pub fn agree<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        if self.size() == 1 {
            return result;
        }
        let failed = self.exchange(&[u8::from(result.is_err())])?;
        match (failed.iter().position(|f| *f != 0), result) {
            (Some(first), Err(error)) if first == self.rank => Err(Agreed::Here(self.named(error)).into()),
            (Some(_), _) => Err(Agreed::Elsewhere.into()),
            (None, result) => result,
        }
    }

    /// Marks an `error` that all processes have at the same point. Process 0 reports it.
    #[must_use]
    pub fn shared(&self, error: anyhow::Error) -> anyhow::Error {
        match (self.size(), self.leads()) {
            (1, _) => error,
            (_, true) => Agreed::Here(error).into(),
            (_, false) => Agreed::Elsewhere.into(),
        }
    }

    /// An error unless `bytes` are the same in all processes. `what` names them in the error.
    ///
    /// # Errors
    /// If a process has other bytes than process 0; the error names the first such process. Also if the communication
    /// fails.
    pub fn ensure_same(&self, what: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let digests = self.exchange(&Sha256::digest(bytes))?;
        let digests: Vec<&[u8]> = digests.chunks(digests.len() / self.size()).collect();
        match digests.iter().position(|d| *d != digests[0]) {
            None => Ok(()),
            Some(other) => {
                Err(self.shared(anyhow::anyhow!("{}: {what} differ from those of process 0", self.names[other])))
            }
        }
    }

    /// Ends the group with the outcome of this process. An error is reported here or returned, unless another process
    /// reports it.
    ///
    /// # Errors
    /// The error that this process reports.
    pub fn conclude(self: Rc<Self>, outcome: anyhow::Result<ExitStatus>) -> anyhow::Result<ExitStatus> {
        let outcome = match outcome {
            Ok(status) => Ok(status),
            Err(error) => match error.downcast::<Agreed>() {
                Ok(Agreed::Here(error)) => Err(error),
                Ok(Agreed::Elsewhere) => Ok(ExitStatus::Trouble),
                Err(error) if self.size() == 1 => return Err(error),
                // The other processes may be waiting for this one.
                Err(error) => {
                    report(&self.named(error));
                    self.abort();
                }
            },
        };
        match &self.control {
            Control::Alone => {}
            Control::Mpi(world) => world.finalize(),
            Control::Tcp(star) => star.finish(),
        }
        outcome
    }

    fn abort(&self) -> ! {
        match &self.control {
            Control::Alone => {}
            Control::Mpi(world) => world.abort(ExitStatus::Trouble as u8),
            Control::Tcp(star) => star.fail(),
        }
        exit()
    }

    fn named(&self, error: anyhow::Error) -> anyhow::Error {
        if self.leads() { error } else { error.context(self.names[self.rank].clone()) }
    }

    /// `own` of all processes, concatenated in rank order. All must have the same length.
    fn exchange(&self, own: &[u8]) -> anyhow::Result<Vec<u8>> {
        match &self.control {
            Control::Alone => Ok(own.to_vec()),
            Control::Mpi(world) => world.gather_bytes(own),
            Control::Tcp(star) => star.gather_bytes(own),
        }
    }

    /// `own` of each process, of any length.
    fn gather_bytes(&self, own: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        let lengths = self.exchange(&u64::try_from(own.len())?.to_le_bytes())?;
        let lengths: Vec<usize> = lengths
            .chunks_exact(8)
            .map(|l| usize::try_from(l.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))))
            .collect::<Result<_, _>>()?;
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let mut padded = own.to_vec();
        padded.resize(longest, 0);
        let all = self.exchange(&padded)?;
        Ok(all.chunks(longest).zip(lengths).map(|(bytes, length)| bytes[..length].to_vec()).collect())
    }
}

fn detached() -> anyhow::Error {
    anyhow::anyhow!("the group of processes cannot exchange tensors yet")
}

/// Ends this process after the loss of the process named `peer`.
fn end_with(peer: &str, loss: &star::Loss) {
    if let star::Loss::Silent(why) = loss {
        report(&anyhow::anyhow!("{peer} ended: {why}"));
    }
    exit()
}

fn report(error: &anyhow::Error) {
    use std::io::Write as _;
    let _ = write!(std::io::stderr().lock(), "{}", crate::printer::printable(&crate::error::render(error)));
}

/// Removes temporary files and ends this process without destructors.
fn exit() -> ! {
    let _removed = d2o_files::remove_temporary();
    signal_hook::low_level::exit(ExitStatus::Trouble as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_process_exchanges_nothing() {
        let group = Rc::new(Group::alone());
        let own = Tensor::from_slice(&[1.0_f32, 2.0]);
        group.sum(&own).unwrap();
        assert_eq!(Vec::<f32>::try_from(&own).unwrap(), [1.0, 2.0]);
        assert_eq!(group.gather(&own).unwrap().size(), [1, 2]);
        assert_eq!(group.any([true, false]).unwrap(), [true, false]);
        assert_eq!(group.gather_bytes(b"abc").unwrap(), [b"abc"]);
        group.ensure_same("values", b"abc").unwrap();
        let error = group.agree::<()>(Err(anyhow::anyhow!("why"))).unwrap_err();
        assert_eq!(group.conclude(Err(error)).unwrap_err().to_string(), "why");
    }
}
