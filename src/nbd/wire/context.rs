//! Metadata contexts as the handshake speaks of them ("Metadata querying").
//! There is one, `base:allocation`: which parts are holes. Pure: no I/O, no
//! state.

use super::option::{BadOption, decode_name};

/// The name of the context that there is.
pub const ALLOCATION: &str = "base:allocation";

/// Its number, in the handshake and in replies to BLOCK_STATUS.
pub const ALLOCATION_ID: u32 = 1;

/// The data of SET_META_CONTEXT and LIST_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextData<'a> {
    /// The export's name; empty for the default export.
    pub name: &'a str,
    /// What is asked for.
    pub queries: Vec<&'a [u8]>,
}

impl ContextData<'_> {
    /// Whether `base:allocation` is asked for by its name.
    pub fn names_allocation(&self) -> bool {
        self.queries.contains(&ALLOCATION.as_bytes())
    }

    /// Whether a list of contexts is to have it: by its name, by its namespace,
    /// or because everything is asked for.
    pub fn lists_allocation(&self) -> bool {
        self.queries.is_empty() || self.names_allocation() || self.queries.contains(&&b"base:"[..])
    }
}

/// Decodes the data of SET_META_CONTEXT and LIST_META_CONTEXT. Allocates at most
/// four times as much as `data` has.
pub fn decode_contexts(data: &[u8]) -> Result<ContextData<'_>, BadOption> {
    let (name, rest) = split_string(data)?;
    let (count, mut rest) = rest.split_first_chunk().ok_or(BadOption::Length)?;
    let count = u32::from_be_bytes(*count);
    let mut queries = Vec::new();
    for _ in 0..count {
        // Ends with the data, whatever the count says.
        let (query, after) = split_string(rest)?;
        queries.push(query);
        rest = after;
    }
    if !rest.is_empty() {
        return Err(BadOption::Length);
    }
    Ok(ContextData {
        name: decode_name(name)?,
        queries,
    })
}

fn split_string(data: &[u8]) -> Result<(&[u8], &[u8]), BadOption> {
    let (length, rest) = data.split_first_chunk().ok_or(BadOption::Length)?;
    let length = u32::from_be_bytes(*length) as usize;
    rest.split_at_checked(length).ok_or(BadOption::Length)
}

/// The data of `NBD_REP_META_CONTEXT`.
pub fn encode_context(id: u32, name: &str) -> Vec<u8> {
    let mut data = id.to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(name: &str, queries: &[&str]) -> Vec<u8> {
        let string = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let mut data = string(name);
        data.extend((queries.len() as u32).to_be_bytes());
        queries.iter().for_each(|query| data.extend(string(query)));
        data
    }

    #[test]
    fn queries_select_what_they_name() {
        for (queries, named, listed) in [
            (&[][..], false, true),
            (&["base:"], false, true),
            (&["other:x", "base:allocation"], true, true),
            (&["base:allocations", "", "base"], false, false),
        ] {
            let data = encode("vol", queries);
            let decoded = decode_contexts(&data).unwrap();
            assert_eq!(decoded.name, "vol");
            assert_eq!(decoded.names_allocation(), named, "{queries:?}");
            assert_eq!(decoded.lists_allocation(), listed, "{queries:?}");
        }
    }

    #[test]
    fn lengths_must_add_up() {
        let good = encode("vol", &["base:", "x"]);
        for length in 0..good.len() {
            assert_eq!(decode_contexts(&good[..length]), Err(BadOption::Length));
        }
        let mut long = good.clone();
        long.push(0);
        assert_eq!(decode_contexts(&long), Err(BadOption::Length));
        // Four billion queries.
        let many = [&[0; 4][..], &[0xff; 4], &[0; 400]].concat();
        assert_eq!(decode_contexts(&many), Err(BadOption::Length));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(data: Vec<u8>) {
            let _ = decode_contexts(&data);
        }
    }
}
