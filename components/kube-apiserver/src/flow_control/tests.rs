//! What the queues promise: seats come back, nobody is passed over for ever, and a flood leaves the others their share.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::queues::{Dispatched, Queues, Refused, Shape, deal};

const SHAPE: Shape = Shape { queues: 16, hand: 4, length: 50 };

#[test]
fn hands_are_different_cards_and_always_the_same() {
    for hash in [0, 1, 12345, u64::MAX] {
        let hand = deal(hash, 64, 6);
        assert_eq!(hand, deal(hash, 64, 6));
        assert_eq!(hand.iter().collect::<HashSet<_>>().len(), 6);
        assert!(hand.iter().all(|c| *c < 64));
    }
    assert_eq!(deal(7, 3, 8).len(), 3);
    let all: HashSet<Vec<usize>> = (0..12).map(|h| deal(h, 4, 2)).collect();
    assert_eq!(all.len(), 12, "every hand can be dealt");
}

#[test]
fn what_does_not_fit_is_refused_where_nothing_waits() {
    let mut q = Queues::new(Shape { queues: 0, hand: 0, length: 0 }, Some(2));
    for key in 0..2 {
        q.arrive(0.0, 1, 1, key).unwrap();
        assert_eq!(q.dispatch(0.0), Some(Dispatched { key, queue: 0 }));
    }
    assert_eq!(q.arrive(0.0, 1, 1, 3), Err(Refused::ConcurrencyLimit));
    q.finish(1.0, 0, 1, 1.0);
    assert!(q.arrive(1.0, 1, 1, 4).is_ok());
}

#[test]
fn a_full_queue_refuses() {
    let mut q = Queues::new(Shape { queues: 1, hand: 1, length: 2 }, Some(1));
    q.arrive(0.0, 0, 1, 0).unwrap();
    q.dispatch(0.0).unwrap();
    q.arrive(0.0, 0, 1, 1).unwrap();
    q.arrive(0.0, 0, 1, 2).unwrap();
    assert_eq!(q.arrive(0.0, 0, 1, 3), Err(Refused::QueueFull));
    assert!(q.abandon(0.0, 0, 1) && !q.abandon(0.0, 0, 0));
    assert!(q.arrive(0.0, 0, 1, 4).is_ok());
}

#[test]
fn a_request_wider_than_the_level_runs_alone_and_is_not_passed() {
    let mut q = Queues::new(SHAPE, Some(4));
    q.arrive(0.0, 1, 1, 0).unwrap();
    let first = q.dispatch(0.0).unwrap();
    q.arrive(0.0, 2, 9, 1).unwrap();
    assert_eq!(q.dispatch(0.0), None);
    q.finish(0.1, first.queue, 1, 0.1);
    assert_eq!(q.dispatch(0.1).map(|d| d.key), Some(1));
    q.arrive(0.1, 3, 1, 2).unwrap();
    assert_eq!(q.dispatch(0.1), None);
}

/// Runs flows that each always have `backlog` requests waiting, for `rounds` completions; how many of each flow ran.
fn served(flows: &[(u64, usize, u64, f64)], limit: u64, rounds: usize) -> Vec<usize> {
    let mut q = Queues::new(SHAPE, Some(limit));
    let (mut now, mut next) = (0.0, 0u64);
    let mut waiting = vec![0usize; flows.len()];
    let mut owner: HashMap<u64, usize> = HashMap::new();
    let mut running: Vec<(f64, f64, u64, usize)> = Vec::new();
    let mut done = vec![0; flows.len()];
    for _ in 0..rounds {
        for (i, (hash, backlog, width, _)) in flows.iter().enumerate() {
            while waiting[i] < *backlog && q.arrive(now, *hash, *width, next).is_ok() {
                owner.insert(next, i);
                waiting[i] += 1;
                next += 1;
            }
        }
        while let Some(d) = q.dispatch(now) {
            let flow = owner[&d.key];
            waiting[flow] -= 1;
            running.push((now + flows[flow].3, now, d.key, d.queue));
        }
        running.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (end, began, key, queue) = running.remove(0);
        now = end;
        let flow = owner[&key];
        q.finish(now, queue, flows[flow].2, now - began);
        done[flow] += 1;
    }
    done
}

#[test]
fn a_flood_leaves_a_small_flow_its_share() {
    // Flows in one queue each: the flood keeps two hundred requests coming, the other has two at a time.
    let shape_of = |h: u64| deal(h, 16, 4).into_iter().collect::<HashSet<_>>();
    let mouse = (1..).find(|h| shape_of(*h).is_disjoint(&shape_of(0))).unwrap();
    let done = served(&[(0, 200, 1, 0.1), (mouse, 2, 1, 0.1)], 2, 400);
    // The flood spreads over the four queues of its hand; the small flow has one or two of as many as are busy.
    assert!(done[1] >= 400 / 8, "{done:?}");
}

#[test]
fn equal_flows_get_equal_shares_and_wide_ones_fewer_turns() {
    let hand = |h: u64| deal(h, 16, 4);
    let far = (1..).find(|h| hand(*h).iter().all(|c| !hand(0).contains(c))).unwrap();
    let done = served(&[(0, 20, 1, 0.1), (far, 20, 1, 0.1)], 4, 600);
    assert!(done[0].abs_diff(done[1]) <= 12, "{done:?}");
    let done = served(&[(0, 20, 1, 0.1), (far, 20, 4, 0.1)], 8, 600);
    assert!(done[0] > 2 * done[1] && done[1] > 60, "{done:?}");
}

proptest! {
    #[test]
    fn seats_come_back_and_everybody_who_stays_is_served(
        limit in 1u64..12,
        queues in 0usize..8,
        steps in proptest::collection::vec((0u8..5, 0u64..6, 1u64..8), 1..200)
    ) {
        let mut q = Queues::new(Shape { queues, hand: 2, length: 6 }, Some(limit));
        let (mut now, mut next) = (0.0, 0u64);
        let mut waiting: HashMap<u64, (usize, u64)> = HashMap::new();
        let mut running: Vec<(u64, usize, u64, f64)> = Vec::new();
        let drain = |q: &mut Queues, now: f64, waiting: &mut HashMap<u64, (usize, u64)>, running: &mut Vec<(u64, usize, u64, f64)>| {
            while let Some(d) = q.dispatch(now) {
                let (queue, width) = waiting.remove(&d.key).expect("only who waits is dispatched, and once");
                assert_eq!(queue, d.queue);
                running.push((d.key, queue, width, now));
            }
        };
        for (what, hash, width) in steps {
            now += 0.01;
            match what {
                0..=2 => {
                    if let Ok(queue) = q.arrive(now, hash, width, next) {
                        waiting.insert(next, (queue, width));
                        next += 1;
                    }
                }
                3 if !running.is_empty() => {
                    let (_, queue, width, began) = running.swap_remove(usize::try_from(hash).unwrap() % running.len());
                    q.finish(now, queue, width, now - began);
                }
                _ => {
                    if let Some((key, (queue, _))) = waiting.iter().min().map(|(k, v)| (*k, *v)) {
                        prop_assert!(q.abandon(now, queue, key));
                        waiting.remove(&key);
                    }
                }
            }
            drain(&mut q, now, &mut waiting, &mut running);
            let taken: u64 = running.iter().map(|r| r.2).sum();
            prop_assert_eq!((q.seats(), q.running(), q.waiting()), (taken, running.len(), waiting.len()));
            prop_assert_eq!(q.demand(), taken + waiting.values().map(|w| w.1).sum::<u64>());
            prop_assert!(taken <= limit || running.len() == 1, "{} seats of {}", taken, limit);
            prop_assert!(waiting.is_empty() || !running.is_empty(), "somebody waits while nobody runs");
        }
        // Everybody who waits runs when those before have ended.
        while !running.is_empty() {
            now += 0.01;
            let (_, queue, width, began) = running.remove(0);
            q.finish(now, queue, width, now - began);
            drain(&mut q, now, &mut waiting, &mut running);
        }
        prop_assert!(waiting.is_empty());
        prop_assert_eq!((q.seats(), q.demand(), q.waiting()), (0, 0, 0));
    }

    #[test]
    fn another_shape_loses_nobody(shapes in proptest::collection::vec((0usize..6, 0u64..6), 1..30)) {
        let mut q = Queues::new(SHAPE, Some(1));
        let (mut served, mut asked) = (0, 0);
        let mut running: Option<usize> = None;
        for (queues, hash) in shapes {
            q.reshape(Shape { queues, hand: 2, length: 50 });
            if q.arrive(0.0, hash, 1, asked).is_ok() {
                asked += 1;
            }
            if running.is_none() {
                running = q.dispatch(0.0).map(|d| d.queue);
            }
        }
        while let Some(queue) = running {
            q.finish(0.0, queue, 1, 0.0);
            served += 1;
            running = q.dispatch(0.0).map(|d| d.queue);
        }
        prop_assert_eq!((served, q.seats()), (asked, 0));
    }
}

#[test]
fn a_list_is_as_wide_as_the_bytes_that_it_has_in_hand() {
    let all = super::List { objects: 1000, bytes: 500_000, limit: None, from_cache: true, selective: false };
    for (list, seats) in [
        (all, 5),
        (super::List { limit: Some(100), ..all }, 1),
        (super::List { limit: Some(5000), ..all }, 5),
        (super::List { objects: 0, bytes: 0, ..all }, 1),
        // From the cache no more than a megabyte is in hand, from etcd everything is.
        (super::List { bytes: 900_000_000, ..all }, 10),
        (super::List { bytes: 9_000_000, from_cache: false, ..all }, 90),
        (super::List { bytes: 9_000_000, from_cache: false, limit: Some(10), ..all }, 1),
        (super::List { bytes: 9_000_000, from_cache: false, limit: Some(10), selective: true, ..all }, 45),
        // Few large objects are as wide as many small ones.
        (super::List { objects: 3, bytes: 900_000, ..all }, 9),
    ] {
        assert_eq!(list.seats(), seats, "{list:?}");
    }
}
