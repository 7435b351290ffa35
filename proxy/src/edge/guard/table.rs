//! Tables for people: aligned columns, as wide as what stands in them.

use std::fmt;

/// A table of text; the first row is its heading.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Columns of numbers.
    right: &'static [usize],
}

impl Table {
    /// An empty table; the columns in `right` are aligned to the right.
    pub(super) fn new(heading: &[&str], right: &'static [usize]) -> Self {
        Self { rows: vec![heading.iter().map(|&word| word.to_owned()).collect()], right }
    }

    /// Adds a row.
    pub(super) fn row<const N: usize>(&mut self, cells: [&dyn fmt::Display; N]) {
        self.rows.push(cells.iter().map(ToString::to_string).collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                let gap = " ".repeat(width - cell.chars().count());
                let (before, after) =
                    if self.right.contains(&column) { (gap.as_str(), "") } else { ("", gap.as_str()) };
                line.extend([before, cell, after]);
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A list for people, or what to say when it is empty.
pub(super) fn list(items: &[String], empty: &str) -> String {
    if items.is_empty() { empty.to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ring", "place", "count"], &[2]);
        assert!(table.is_empty());
        table.row([&"xdp", &"eth0", &7]);
        table.row([&"connect", &"IPv4", &1234]);
        let expected = "ring     place  count\nxdp      eth0       7\nconnect  IPv4    1234\n";
        assert_eq!(table.to_string(), expected);
    }
}
