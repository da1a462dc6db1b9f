//! How the processes of a run were started: the variables that launchers set.

use anyhow::Context as _;

/// One process of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Rank, from 0.
    pub rank: usize,
    /// Number of processes, at least 2.
    pub size: usize,
    /// Rank on its host, if the launcher gives one.
    pub local_rank: Option<usize>,
    /// Transport between the processes.
    pub way: Way,
}

/// Transport between processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// MPI, set up by mpiexec, mpirun or srun.
    Mpi,
    /// TCP, at an address from torchrun, or from the user with srun.
    Tcp(Meeting),
}

/// Address where processes connect by TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meeting {
    /// Host of process 0.
    pub host: String,
    /// Port of process 0, or of the store if there is a `key`.
    pub port: u16,
    /// Key under which process 0 publishes its port in the `TCPStore` that torchrun's agent runs at `port`. `None` if
    /// process 0 listens at `port`.
    pub key: Option<String>,
}

impl Launch {
    /// Reads the environment; `None` for a single process.
    ///
    /// # Errors
    /// The errors of [`Launch::read`].
    pub fn from_environment() -> anyhow::Result<Option<Self>> {
        Self::read(&|name| std::env::var(name).ok())
    }

    /// Reads the variables that `variable` returns; `None` for a single process. Tries, in this order: `RANK` and
    /// `WORLD_SIZE` of torchrun, the variables of Open MPI, of PMI (MPICH and its derivatives), and of srun. Slurm also
    /// sets `SLURM_NTASKS` in the shells of salloc and sbatch, where it starts one process. `SLURM_STEP_NUM_TASKS`
    /// counts the processes of the step that this process belongs to.
    ///
    /// # Errors
    /// If a variable is not a number, variables contradict each other, or the address is missing.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Option<Self>> {
        let parsed = |name: &str, text: String| -> anyhow::Result<usize> {
            text.parse().with_context(|| format!("{name}={text}: expected a number"))
        };
        for (rank_name, size_name, local) in [
            ("RANK", "WORLD_SIZE", &["LOCAL_RANK"][..]),
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", &["OMPI_COMM_WORLD_LOCAL_RANK"]),
            ("PMI_RANK", "PMI_SIZE", &["MPI_LOCALRANKID", "SLURM_LOCALID"]),
            ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", &["SLURM_LOCALID"]),
        ] {
            let (Some(rank), Some(size)) = (variable(rank_name), variable(size_name)) else { continue };
            let (rank, size) = (parsed(rank_name, rank)?, parsed(size_name, size)?);
            anyhow::ensure!(rank < size, "{rank_name}={rank}: expected a number below {size_name}={size}");
            if size == 1 {
                return Ok(None);
            }
            let way = match rank_name {
                "RANK" => {
                    Way::Tcp(Meeting::read(variable)?.context("RANK and WORLD_SIZE are set, but MASTER_ADDR is not")?)
                }
                "SLURM_PROCID" => Meeting::read(variable)?.map_or(Way::Mpi, Way::Tcp),
                _ => Way::Mpi,
            };
            let local = local.iter().find_map(|name| Some((*name, variable(name)?)));
            let local_rank = local.map(|(name, text)| parsed(name, text)).transpose()?;
            return Ok(Some(Self { rank, size, local_rank, way }));
        }
        Ok(None)
    }
}

impl Meeting {
    /// Reads `MASTER_ADDR` and `MASTER_PORT`; `None` if the first is not set.
    fn read(variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Option<Self>> {
        let Some(host) = variable("MASTER_ADDR") else { return Ok(None) };
        let port = variable("MASTER_PORT").context("MASTER_ADDR is set, but MASTER_PORT is not")?;
        let port = port.parse().with_context(|| format!("MASTER_PORT={port}: expected a port"))?;
        // With the rendezvous of torchrun, its agent listens at this port as long as it restarts processes.
        let agent = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v.eq_ignore_ascii_case("true"));
        let text = |name: &str| variable(name).unwrap_or_default();
        let key =
            agent.then(|| format!("d2o/{}/{}/port", text("TORCHELASTIC_RUN_ID"), text("TORCHELASTIC_RESTART_COUNT")));
        Ok(Some(Self { host, port, key }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Option<Launch>> {
        let value = |name: &str| {
            text.split_whitespace().filter_map(|v| v.split_once('=')).find(|v| v.0 == name).map(|v| v.1.to_owned())
        };
        Launch::read(&value)
    }

    fn launch(rank: usize, size: usize, local_rank: Option<usize>, way: Way) -> Option<Launch> {
        Some(Launch { rank, size, local_rank, way })
    }

    #[test]
    fn launchers_are_recognised_by_their_variables() {
        let torchrun = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=29500";
        let at = |key: Option<&str>| Way::Tcp(Meeting { host: "a".into(), port: 29500, key: key.map(Into::into) });
        assert_eq!(read(torchrun).unwrap(), launch(3, 4, Some(1), at(None)));
        // The store of the agent, in a Slurm allocation.
        let agent = "TORCHELASTIC_USE_AGENT_STORE=True TORCHELASTIC_RUN_ID=r TORCHELASTIC_RESTART_COUNT=2";
        let slurm = "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0";
        let found = read(&format!("{torchrun} {agent} {slurm}")).unwrap();
        assert_eq!(found, launch(3, 4, Some(1), at(Some("d2o/r/2/port"))));

        let open_mpi = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0";
        assert_eq!(read(open_mpi).unwrap(), launch(1, 2, Some(0), Way::Mpi));
        assert_eq!(read("PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1").unwrap(), launch(1, 2, Some(1), Way::Mpi));
        // mpiexec in a Slurm step: the numbers of mpiexec take precedence.
        assert_eq!(read(&format!("PMI_RANK=1 PMI_SIZE=3 {slurm}")).unwrap(), launch(1, 3, Some(0), Way::Mpi));
        assert_eq!(read(slurm).unwrap(), launch(0, 2, Some(0), Way::Mpi));
        assert_eq!(read(&format!("{slurm} MASTER_ADDR=a MASTER_PORT=29500")).unwrap(), launch(0, 2, Some(0), at(None)));
    }

    #[test]
    fn a_single_process_waits_for_no_other() {
        for alone in [
            "",
            "RANK=0 WORLD_SIZE=1",
            "PMI_RANK=0 PMI_SIZE=1",
            // The shell of sbatch, and that of salloc, which is a step of its own.
            "SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_LOCALID=0",
            "SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_STEP_ID=4294967290 SLURM_STEP_NUM_TASKS=1",
            // Some programs use the name for something else.
            "RANK=gold",
        ] {
            assert_eq!(read(alone).unwrap(), None, "{alone}");
        }
    }

    #[test]
    fn contradictions_are_errors() {
        let error = |text: &str| format!("{:#}", read(text).unwrap_err());
        assert!(error("RANK=0 WORLD_SIZE=2").contains("MASTER_ADDR is not"));
        assert!(error("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a").contains("MASTER_PORT is not"));
        assert!(error("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=x").contains("MASTER_PORT=x: expected a port"));
        assert!(error("PMI_RANK=2 PMI_SIZE=2").contains("PMI_RANK=2: expected a number below PMI_SIZE=2"));
        assert!(error("PMI_RANK=a PMI_SIZE=2").contains("PMI_RANK=a: expected a number"));
    }
}
