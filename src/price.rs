//! `cke price`: what a cluster of some shape costs, without a server.

use std::fmt::Write as _;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::platform::error::PlatformError;
use crate::platform::pricing::{self, Quote, QuoteItem, QuotedGroup};
use crate::platform::validation;
use crate::platform::{Component, ComponentConfig, Components, Flavor, Topology, TopologyKind};

#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    #[error("--component is for the topology DISTRIBUTED, not {0}")]
    ComponentOfTopology(TopologyKind),
    #[error("--component names {0} twice")]
    DuplicateComponent(&'static str),
    #[error(transparent)]
    Refused(#[from] PlatformError),
    #[error("cannot write the prices: {0}")]
    Write(#[from] std::io::Error),
}

/// Options of `cke price`.
#[derive(Args, Clone, Debug)]
pub struct PriceOptions {
    /// ALL_IN_ONE, DEDICATED_COMPUTE or DISTRIBUTED
    #[arg(long, value_name = "TOPOLOGY", default_value = "ALL_IN_ONE")]
    pub topology: TopologyKind,

    /// Flavor of each control plane VM: 2XS, XS, S, M, L or XL, as far as the topology has it
    /// [default: the topology's smallest]
    #[arg(long, value_name = "FLAVOR")]
    pub flavor: Option<Flavor>,

    /// Control plane VMs, 1 to 5; of a DISTRIBUTED control plane, of each component
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub replication_factor: u8,

    /// Flavor and number of the VMs of one component of a DISTRIBUTED control plane, such as
    /// apiserver=S:3; the others follow --flavor and --replication-factor. May be repeated
    #[arg(long = "component", value_name = "NAME=FLAVOR:N")]
    pub components: Vec<ComponentOption>,

    /// Flavor and number of a node group's nodes, such as M:3 or web=M:3. May be repeated
    #[arg(long = "node-group", value_name = "[NAME=]FLAVOR:N")]
    pub node_groups: Vec<NodeGroupOption>,

    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComponentOption {
    pub component: Component,
    pub config: ComponentConfig,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeGroupOption(pub QuotedGroup);

impl FromStr for ComponentOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, vms) = text
            .split_once('=')
            .ok_or("expected NAME=FLAVOR:N, such as apiserver=S:3")?;
        let component = Component::ALL
            .into_iter()
            .find(|component| component.name() == name)
            .ok_or_else(|| {
                let names: Vec<&str> = Component::ALL.iter().map(|c| c.name()).collect();
                format!("`{name}` is not one of {}", names.join(", "))
            })?;
        let (flavor, replication_factor) = vms_of(vms)?;
        let config = ComponentConfig {
            flavor,
            replication_factor,
        };
        Ok(ComponentOption { component, config })
    }
}

impl FromStr for NodeGroupOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, nodes) = match text.split_once('=') {
            Some((name, nodes)) => (Some(name.to_owned()), nodes),
            None => (None, text),
        };
        let (flavor, count) = vms_of(nodes)?;
        Ok(NodeGroupOption(QuotedGroup {
            name,
            flavor,
            count,
        }))
    }
}

/// `M:3`.
fn vms_of<N: FromStr>(text: &str) -> Result<(Flavor, N), String> {
    let (flavor, count) = text
        .split_once(':')
        .ok_or_else(|| format!("`{text}`: expected FLAVOR:N, such as M:3"))?;
    let flavor = flavor
        .parse()
        .map_err(|error: crate::platform::InvalidId| error.to_string())?;
    let count = count
        .parse()
        .map_err(|_| format!("`{count}` is not a number of VMs"))?;
    Ok((flavor, count))
}

impl PriceOptions {
    /// Prints the quote.
    ///
    /// # Errors
    /// Options that no cluster can have, with the reason that its creation would be refused with.
    pub fn run(&self) -> Result<(), PriceError> {
        use std::io::Write as _;
        let quote = self.quote()?;
        let text = match self.format {
            Format::Table => table(&quote),
            Format::Json => {
                let json = serde_json::to_string_pretty(&quote).map_err(std::io::Error::from)?;
                format!("{json}\n")
            }
        };
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    fn quote(&self) -> Result<Quote, PriceError> {
        let topology = self.topology()?;
        validation::topology_fits("topology", &topology)?;
        let groups: Vec<QuotedGroup> = self
            .node_groups
            .iter()
            .map(|NodeGroupOption(group)| group.clone())
            .collect();
        for group in &groups {
            validation::node_counts("nodeGroup.", group.count, 0, validation::MAX_NODES)?;
        }
        Ok(pricing::quote(&topology, &groups))
    }

    fn topology(&self) -> Result<Topology, PriceError> {
        let flavor = self.flavor.unwrap_or(self.topology.flavors()[0]);
        let replication_factor = self.replication_factor;
        if self.topology != TopologyKind::Distributed && !self.components.is_empty() {
            return Err(PriceError::ComponentOfTopology(self.topology));
        }
        Ok(match self.topology {
            TopologyKind::AllInOne => Topology::AllInOne {
                flavor,
                replication_factor,
            },
            TopologyKind::DedicatedCompute => Topology::DedicatedCompute {
                flavor,
                replication_factor,
            },
            TopologyKind::Distributed => {
                let mut components = Components::uniform(ComponentConfig {
                    flavor,
                    replication_factor,
                });
                let mut named = Vec::new();
                for option in &self.components {
                    if named.contains(&option.component) {
                        return Err(PriceError::DuplicateComponent(option.component.name()));
                    }
                    named.push(option.component);
                    *components.get_mut(option.component) = option.config;
                }
                Topology::Distributed { components }
            }
        })
    }
}

/// Amounts in euro, without taxes.
fn table(quote: &Quote) -> String {
    let mut text = format!(
        "{:<26}  {:<6}  {:>5}  {:>10}  {:>12}\n",
        "ITEM", "FLAVOR", "COUNT", "EUR/HOUR", "EUR/MONTH"
    );
    for QuoteItem {
        item,
        flavor,
        count,
        price,
        ..
    } in &quote.items
    {
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "{item:<26}  {flavor:<6}  {count:>5}  {:>10}  {:>12}",
            price.shown_hourly(),
            price.shown_monthly()
        );
    }
    let _ = writeln!(
        text,
        "{:<26}  {:<6}  {:>5}  {:>10}  {:>12}",
        "total, without taxes",
        "",
        "",
        quote.total.shown_hourly(),
        quote.total.shown_monthly()
    );
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use expect_test::expect;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: PriceOptions,
    }

    /// The table, or why there is none.
    fn said(arguments: &str) -> String {
        let arguments = ["price"].into_iter().chain(arguments.split_whitespace());
        match Command::try_parse_from(arguments) {
            Ok(command) => match command.options.quote() {
                Ok(quote) => table(&quote),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string().lines().next().unwrap_or("").to_owned(),
        }
    }

    #[test]
    fn a_quote_has_an_item_for_everything_that_is_paid() {
        expect![[r#"
            ITEM                        FLAVOR  COUNT    EUR/HOUR     EUR/MONTH
            apiserver                   S           3      0.4000        288.00
            controller-manager          XS          1      0.0917         66.00
            scheduler                   XS          1      0.0917         66.00
            node-group-operator         XS          1      0.0917         66.00
            cloud-controller-manager    XS          1      0.0917         66.00
            node group                  M           3      0.3500        252.00
            node group web              2XS         1      0.0333         24.00
            total, without taxes                           1.1500        828.00
        "#]].assert_eq(&said(
            "--topology distributed --flavor XS --component apiserver=S:3 --node-group M:3 --node-group web=2XS:1",
        ));
        expect![[r#"
            ITEM                        FLAVOR  COUNT    EUR/HOUR     EUR/MONTH
            bundle                      S           5      0.4444        320.00
            total, without taxes                           0.4444        320.00
        "#]]
        .assert_eq(&said(
            "--topology ALL_IN_ONE --flavor S --replication-factor 5",
        ));
    }

    #[test]
    fn what_no_cluster_can_be_has_no_price() {
        let check = |arguments: &str, expect: &str| {
            let said = said(arguments);
            assert!(said.contains(expect), "{arguments}: {said}");
        };
        check("--topology FOO", "FOO");
        check("--flavor XXL", "XXL");
        check("--replication-factor 6", "between 1 and 5");
        check("--component apiserver=S:1", "not ALL_IN_ONE");
        check(
            "--topology DISTRIBUTED --component etcd=S:1",
            "`etcd` is not one of",
        );
        check(
            "--topology DISTRIBUTED --component apiserver=S:1 --component apiserver=M:1",
            "twice",
        );
        check(
            "--topology DISTRIBUTED --component apiserver=S:6",
            "between 1 and 5",
        );
        check("--node-group M", "FLAVOR:N");
        check("--node-group M:-1", "not a number");
        check("--node-group M:9999", "between 0 and");
    }
}
