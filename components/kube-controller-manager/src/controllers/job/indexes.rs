//! Sets of completion indexes in the form `1,3-5,7`.

use std::collections::BTreeSet;

/// Reads the form; what cannot be read, or lies beyond `limit`, is left out.
pub fn parse(text: &str, limit: i32) -> BTreeSet<i32> {
    let mut set = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<i32>(), last.trim().parse::<i32>()) {
            set.extend(first.max(0)..=last.min(limit - 1));
        }
    }
    set
}

/// Writes the form.
pub fn format(set: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in set {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    // Upstream writes runs of two as two numbers.
    let show = |(first, last): (i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.into_iter().map(show).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_are_written_as_ranges() {
        for (set, text) in [(vec![], ""), (vec![1], "1"), (vec![1, 2], "1,2"), (vec![1, 3, 4, 5, 7], "1,3-5,7")] {
            assert_eq!(format(&set.iter().copied().collect()), text);
        }
        assert_eq!(parse("0-1000000000,x,5-", 3), BTreeSet::from([0, 1, 2]));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(set in proptest::collection::btree_set(0..50_i32, 0..30)) {
            prop_assert_eq!(parse(&format(&set), 50), set);
        }

        #[test]
        fn parsing_never_panics(text in "[-0-9, x]{0,20}") {
            let _ = parse(&text, 100);
        }
    }
}
