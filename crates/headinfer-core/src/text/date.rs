//! The date a template may print. Must not read a clock.

/// A day of the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    year: i32,
    month: u8,
    day: u8,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Date {
    /// The date, where there is one: years 1 to 9999, months and days from 1.
    pub fn new(year: i32, month: u8, day: u8) -> Option<Self> {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            2 => 28 + u8::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let known = (1..=9999).contains(&year) && (1..=12).contains(&month) && (1..=days).contains(&day);
        known.then_some(Date { year, month, day })
    }

    /// As C's `strftime` in English, for the letters that speak of a day: `%d %-d %m %-m %y %Y %b %B %a %A %%`.
    ///
    /// # Errors
    /// The directive that is none of these.
    pub(crate) fn format(self, pattern: &str) -> Result<String, String> {
        let (month, weekday) = (MONTHS[usize::from(self.month) - 1], WEEKDAYS[self.weekday()]);
        let mut text = String::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let rest = chars.as_str();
            let directive: String = rest.chars().take(if rest.starts_with('-') { 2 } else { 1 }).collect();
            match directive.as_str() {
                "d" => text.push_str(&format!("{:02}", self.day)),
                "-d" => text.push_str(&self.day.to_string()),
                "m" => text.push_str(&format!("{:02}", self.month)),
                "-m" => text.push_str(&self.month.to_string()),
                "y" => text.push_str(&format!("{:02}", self.year % 100)),
                "Y" => text.push_str(&self.year.to_string()),
                "b" => text.push_str(&month[..3]),
                "B" => text.push_str(month),
                "a" => text.push_str(&weekday[..3]),
                "A" => text.push_str(weekday),
                "%" => text.push('%'),
                _ => return Err(format!("%{directive}")),
            }
            chars = rest[directive.len()..].chars();
        }
        Ok(text)
    }

    /// From Sunday, 0 (Sakamoto's rule).
    fn weekday(self) -> usize {
        const SHIFT: [i32; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = self.year - i32::from(self.month < 3);
        let shift = SHIFT[usize::from(self.month) - 1];
        (year + year / 4 - year / 100 + year / 400 + shift + i32::from(self.day)).rem_euclid(7) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_print_as_in_c() {
        let date = Date::new(2024, 7, 6).unwrap();
        assert_eq!(date.format("%d %b %Y").unwrap(), "06 Jul 2024");
        assert_eq!(
            date.format("%A, %B %-d, %y; %a %m/%-m 100%%").unwrap(),
            "Saturday, July 6, 24; Sat 07/7 100%"
        );
        assert_eq!(Date::new(2000, 2, 29).unwrap().format("%a").unwrap(), "Tue");
        assert_eq!(date.format("%H"), Err("%H".into()));
        assert_eq!(date.format("é%"), Err("%".into()));
        assert_eq!(date.format("%é"), Err("%é".into()));
    }

    #[test]
    fn days_that_are_none_are_refused() {
        for (y, m, d) in [(2023, 2, 29), (1900, 2, 29), (2024, 13, 1), (2024, 0, 1), (2024, 4, 31), (0, 1, 1)]
        {
            assert_eq!(Date::new(y, m, d), None, "{y}-{m}-{d}");
        }
    }
}
