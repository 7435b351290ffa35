//! Blocks of addresses, as `10.0.0.0/8`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The first address.
    pub address: IpAddr,
    /// How many leading bits are fixed.
    pub bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| format!("{address:?} is not an IP address"))?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= width),
            None => Some(width),
        };
        let bits = bits.ok_or_else(|| format!("the prefix length must be 0 to {width}"))?;
        let first = network(address, bits);
        if first != address {
            return Err(format!(
                "{address} is inside the block: write {first}/{bits}, or {address}/{width} for it alone"
            ));
        }
        Ok(Self { address, bits })
    }
}

impl Cidr {
    /// Whether the block holds an address; an IPv4 address written as IPv6 is the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && network(address, self.bits) == self.address
    }
}

fn network(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_and_slips_are_named() {
        assert_eq!("10.0.0.0/8".parse::<Cidr>().expect("a block").to_string(), "10.0.0.0/8");
        assert_eq!("192.0.2.7".parse::<Cidr>().expect("a block").bits, 32);
        assert_eq!("::/0".parse::<Cidr>().expect("a block").bits, 0);
        assert!("10.0.0.1/8".parse::<Cidr>().expect_err("wrong").contains("write 10.0.0.0/8"));
        for wrong in ["", "10.0.0.0/33", "10.0.0.0/x", "10.0.0/8", "fe80::/129"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_block_holds_its_addresses() {
        for (block, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:1::1", "2001:db9::1"),
            ("::/0", "::1", "127.0.0.1"),
        ] {
            let block: Cidr = block.parse().expect("a block");
            assert!(block.contains(inside.parse().expect("an address")), "{block} {inside}");
            assert!(!block.contains(outside.parse().expect("an address")), "{block} {outside}");
        }
    }
}
