//! The queues of one priority level: shuffle sharding, fair dispatch by virtual time, and a bound of seats. No clock, no waiting: time
//! comes in, keys of requests that may run come out.
//!
//! A request takes as many seats as it is wide. It is put into the least loaded of the few queues that its flow is dealt, so that a
//! flow that floods fills its own hand and hardly ever all of another's. Each queue has a virtual time at which its next request would
//! start if every busy queue got the same share of the seats; the one whose head would end first is next. When the head of that queue
//! is too wide for the free seats, nothing passes it: wide requests do not starve.

use std::collections::VecDeque;

/// What a request is assumed to take until it has ended, in seconds.
const GUESS: f64 = 0.003;

/// How a level queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// 0: nothing waits, what does not fit is refused.
    pub queues: usize,
    pub hand: usize,
    pub length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    QueueFull,
    ConcurrencyLimit,
}

/// A request that waits.
#[derive(Debug)]
struct Waiting {
    key: u64,
    width: u64,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    waiting_seats: u64,
    /// Of requests that run.
    seats: u64,
    running: usize,
    /// The virtual time at which the head starts.
    next: f64,
}

impl Queue {
    fn busy(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

/// A request that may run now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dispatched {
    pub key: u64,
    pub queue: usize,
}

#[derive(Debug)]
pub struct Queues {
    shape: Shape,
    /// Seats that may be taken; none: any number.
    limit: Option<u64>,
    queues: Vec<Queue>,
    seats: u64,
    waiting: usize,
    waiting_seats: u64,
    busy: usize,
    virtual_time: f64,
    /// When the virtual time was right, in seconds.
    at: f64,
    robin: usize,
}

/// Deals a hand of different numbers below `deck`, the same for the same hash.
pub fn deal(mut hash: u64, deck: usize, hand: usize) -> Vec<usize> {
    let mut cards: Vec<usize> = Vec::with_capacity(hand);
    for i in 0..hand.min(deck) {
        let left = (deck - i) as u64;
        let mut card = usize::try_from(hash % left).unwrap_or(0);
        hash /= left;
        // The n-th of those that are still in the deck.
        let mut sorted = cards.clone();
        sorted.sort_unstable();
        for c in sorted {
            if card >= c {
                card += 1;
            }
        }
        cards.push(card);
    }
    cards
}

impl Queues {
    pub fn new(shape: Shape, limit: Option<u64>) -> Self {
        Self {
            shape,
            limit,
            queues: std::iter::repeat_with(Queue::default).take(shape.queues.max(1)).collect(),
            seats: 0,
            waiting: 0,
            waiting_seats: 0,
            busy: 0,
            virtual_time: 0.0,
            at: 0.0,
            robin: 0,
        }
    }

    /// Takes another shape. What waits stays where it is: queues that there are too many of get nothing new and empty by and by.
    pub fn reshape(&mut self, shape: Shape) {
        self.shape = shape;
        let idle = self.queues.iter().rev().take_while(|q| !q.busy()).count();
        let keep = (self.queues.len() - idle).max(shape.queues.max(1));
        self.queues.resize_with(keep, Queue::default);
    }

    pub fn set_limit(&mut self, now: f64, limit: Option<u64>) {
        self.advance(now);
        self.limit = limit;
    }

    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    pub fn seats(&self) -> u64 {
        self.seats
    }

    #[cfg(test)]
    pub fn running(&self) -> usize {
        self.queues.iter().map(|q| q.running).sum()
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Seats that are taken or waited for.
    pub fn demand(&self) -> u64 {
        self.seats + self.waiting_seats
    }

    fn advance(&mut self, now: f64) {
        let past = (now - self.at).max(0.0);
        self.at = self.at.max(now);
        if self.busy > 0 {
            let served = self.limit.map_or(self.demand(), |l| l.min(self.demand()));
            self.virtual_time += past * served as f64 / self.busy as f64;
        }
    }

    fn fits(&self, width: u64) -> bool {
        // Someone wider than all seats runs alone; without any seat nobody runs.
        self.limit.is_none_or(|l| self.seats + width <= l || (self.seats == 0 && l > 0))
    }

    fn run(&mut self, queue: usize, width: u64) {
        let q = &mut self.queues[queue];
        q.seats += width;
        q.running += 1;
        q.next += width as f64 * GUESS;
        self.seats += width;
    }

    /// A request arrives. It waits now, even if there is room: [`Self::dispatch`] says who is next.
    pub fn arrive(&mut self, now: f64, hash: u64, width: u64, key: u64) -> Result<usize, Refused> {
        self.advance(now);
        let queue = if self.shape.queues == 0 {
            if !self.fits(width) {
                return Err(Refused::ConcurrencyLimit);
            }
            0
        } else {
            let load = |i: &usize| (self.queues[*i].waiting_seats + self.queues[*i].seats, self.queues[*i].waiting.len());
            let queue = deal(hash, self.shape.queues, self.shape.hand).into_iter().min_by_key(load).unwrap_or(0);
            if self.queues[queue].waiting.len() >= self.shape.length {
                return Err(Refused::QueueFull);
            }
            queue
        };
        let virtual_time = self.virtual_time;
        let q = &mut self.queues[queue];
        if !q.busy() {
            q.next = virtual_time;
            self.busy += 1;
        }
        q.waiting.push_back(Waiting { key, width });
        q.waiting_seats += width;
        self.waiting += 1;
        self.waiting_seats += width;
        Ok(queue)
    }

    /// The next request that may run, if any; to be asked until there is none.
    pub fn dispatch(&mut self, now: f64) -> Option<Dispatched> {
        if self.waiting == 0 {
            return None;
        }
        self.advance(now);
        let n = self.queues.len();
        let mut best: Option<(f64, usize, u64)> = None;
        for i in (1..=n).map(|d| (self.robin + d) % n) {
            let q = &self.queues[i];
            if let Some(head) = q.waiting.front() {
                let end = q.next + head.width as f64 * GUESS;
                if best.is_none_or(|(e, ..)| end < e) {
                    best = Some((end, i, head.width));
                }
            }
        }
        let (_, queue, width) = best.filter(|(.., width)| self.fits(*width))?;
        self.robin = queue;
        let head = self.queues[queue].waiting.pop_front()?;
        self.forget(queue, width);
        self.run(queue, width);
        Some(Dispatched { key: head.key, queue })
    }

    /// One that waited does not any more.
    fn forget(&mut self, queue: usize, width: u64) {
        self.queues[queue].waiting_seats -= width;
        self.waiting -= 1;
        self.waiting_seats -= width;
    }

    fn settle(&mut self, queue: usize) {
        if !self.queues[queue].busy() {
            self.busy -= 1;
        }
    }

    /// A request that ran for `took` seconds ends.
    pub fn finish(&mut self, now: f64, queue: usize, width: u64, took: f64) {
        self.advance(now);
        let q = &mut self.queues[queue];
        q.seats -= width;
        q.running -= 1;
        // The guess is made good.
        q.next += width as f64 * (took.max(0.0) - GUESS);
        self.seats -= width;
        self.settle(queue);
    }

    /// A request does not want to wait any longer. False: it does not wait, it runs.
    pub fn abandon(&mut self, now: f64, queue: usize, key: u64) -> bool {
        self.advance(now);
        let Some(at) = self.queues[queue].waiting.iter().position(|w| w.key == key) else { return false };
        let Some(w) = self.queues[queue].waiting.remove(at) else { return false };
        self.forget(queue, w.width);
        self.settle(queue);
        true
    }
}
