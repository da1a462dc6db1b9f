//! Work on several devices at once, with results in the order of the work.

use std::collections::VecDeque;
use std::sync::mpsc::sync_channel;

/// Items queued for a worker besides the one in progress.
const AHEAD: usize = 1;

/// Assigns `items` to `workers` in turn, one thread per worker, and passes the results to `each` in the order of the
/// items while the workers continue. The result of an item must not depend on the worker. An error of an item ends the
/// work at that item, after the results of all earlier items were passed on.
///
/// # Errors
/// The first error of `items`, `work` or `each`.
pub fn in_turn<W: Send, T: Send, R: Send>(
    workers: &mut [W],
    items: impl IntoIterator<Item = anyhow::Result<T>>,
    work: impl Fn(&mut W, T) -> anyhow::Result<R> + Sync,
    mut each: impl FnMut(R) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let mut lanes = Vec::new();
        for worker in workers.iter_mut() {
            let (give, given) = sync_channel::<T>(AHEAD);
            let (answer, answers) = sync_channel::<anyhow::Result<R>>(AHEAD + 1);
            scope.spawn(move || {
                for item in given {
                    if answer.send(work(worker, item)).is_err() {
                        break;
                    }
                }
            });
            lanes.push((give, answers));
        }
        anyhow::ensure!(!lanes.is_empty(), "no device");
        let failed = || anyhow::anyhow!("a device's thread failed");
        let mut items = items.into_iter();
        let (mut next, mut waiting, mut ended) = (0, VecDeque::new(), None);
        loop {
            while ended.is_none() && waiting.len() <= lanes.len() * AHEAD {
                match items.next() {
                    Some(Ok(item)) => {
                        lanes[next].0.send(item).map_err(|_| failed())?;
                        waiting.push_back(next);
                        next = (next + 1) % lanes.len();
                    }
                    Some(Err(error)) => ended = Some(Err(error)),
                    None => ended = Some(Ok(())),
                }
            }
            match waiting.pop_front() {
                Some(lane) => each(lanes[lane].1.recv().map_err(|_| failed())??)?,
                None => return ended.unwrap_or(Ok(())),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(workers: usize, items: Vec<anyhow::Result<u64>>, bad: Option<u64>) -> (Vec<u64>, anyhow::Result<()>) {
        let mut found = Vec::new();
        let mut workers: Vec<usize> = (0..workers).collect();
        let work = |worker: &mut usize, item: u64| {
            // The first worker is the slowest.
            std::thread::sleep(std::time::Duration::from_millis(if *worker == 0 { 3 } else { 0 }));
            anyhow::ensure!(Some(item) != bad, "bad item {item}");
            Ok(item * item)
        };
        let result = in_turn(&mut workers, items, work, |square| {
            found.push(square);
            Ok(())
        });
        (found, result)
    }

    #[test]
    fn results_come_in_the_order_of_the_work() {
        let squares: Vec<u64> = (0..20).map(|i| i * i).collect();
        for workers in 1..5 {
            let (found, result) = run(workers, (0..20).map(Ok).collect(), None);
            assert_eq!((found, result.is_ok()), (squares.clone(), true), "{workers} workers");
        }
        assert!(run(0, vec![Ok(1)], None).1.is_err());
    }

    #[test]
    fn the_first_error_ends_it_after_what_came_before() {
        for workers in 1..4 {
            let (found, result) = run(workers, (0..20).map(Ok).collect(), Some(7));
            assert_eq!(found.len(), 7, "{workers} workers");
            assert_eq!(result.unwrap_err().to_string(), "bad item 7");
            let items = vec![Ok(1), Ok(2), Err(anyhow::anyhow!("unreadable")), Ok(3)];
            let (found, result) = run(workers, items, None);
            assert_eq!((found, result.unwrap_err().to_string()), (vec![1, 4], "unreadable".to_owned()));
        }
    }

    #[test]
    fn an_error_of_the_taker_ends_it() {
        let mut workers = [(), ()];
        let result = in_turn(
            &mut workers,
            (0..100).map(Ok),
            |(), i: u64| Ok(i),
            |i| {
                anyhow::ensure!(i < 3, "enough");
                Ok(())
            },
        );
        assert_eq!(result.unwrap_err().to_string(), "enough");
    }
}
