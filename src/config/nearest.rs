//! The nearest valid word to a wrong one.

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`.
pub fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// The nearest of `words` to `wrong`; the first of several equally near.
pub fn word<'a>(wrong: &str, words: &[&'a str]) -> Option<&'a str> {
    words.iter().copied().min_by_key(|word| distance(wrong, word))
}

/// The nearest valid key to `wrong` in the table `table` ("" is the top): the same name in
/// another table, else a like name in this one, else a like name elsewhere.
pub fn key(table: &str, wrong: &str, keys: &[String]) -> Option<String> {
    let split = |key: &str| match key.rsplit_once('.') {
        Some((parent, name)) => (parent.to_owned(), name.to_owned()),
        None => (String::new(), key.to_owned()),
    };
    let likeness = |key: &&String| {
        let (parent, name) = split(key);
        let edits = distance(wrong, &name);
        let near = edits <= 1.max(wrong.len() / 3);
        // Like names first; among them the same table, unless the name elsewhere is exact.
        let elsewhere = usize::from(parent != table);
        (!near, if edits == 0 { 0 } else { 1 + elsewhere }, edits, distance(table, &parent))
    };
    keys.iter().min_by_key(likeness).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found_in_this_table_and_in_others() {
        let keys: Vec<String> = ["name", "train.steps", "train.seq", "train.lr", "trace.steps"]
            .map(str::to_owned)
            .into();
        assert_eq!(key("train", "step", &keys).as_deref(), Some("train.steps"));
        assert_eq!(key("trace", "step", &keys).as_deref(), Some("trace.steps"));
        assert_eq!(key("model", "lr", &keys).as_deref(), Some("train.lr"));
        assert_eq!(key("", "nmae", &keys).as_deref(), Some("name"));
        assert_eq!(word("bf15", &["f32", "bf16"]), Some("bf16"));
        assert_eq!(distance("ab", "ba"), 1);
    }
}
