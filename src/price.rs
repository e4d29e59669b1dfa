//! `cke price`: what clusters of some shapes cost, without a server; and the cheapest that will do.

use std::fmt::Write as _;

use clap::{Args, Subcommand, ValueEnum};

use crate::platform::catalog::RATES;
use crate::platform::cheapest::{self, Wanted};
use crate::platform::error::PlatformError;
use crate::platform::pricing::{self, Quote, QuoteItem, QuotedItem};
use crate::platform::quota::Resources;
use crate::platform::shape::{self, ComponentShape, InvalidShape, NodeGroupShape, Shape};
use crate::platform::what_if::{ItemChange, Side, difference};
use crate::platform::{Flavor, TopologyKind};

#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    #[error(transparent)]
    Shape(#[from] InvalidShape),
    #[error(transparent)]
    Refused(#[from] PlatformError),
    #[error("no shape has that within the quota")]
    NothingFits,
    #[error("cannot write the prices: {0}")]
    Write(#[from] std::io::Error),
}

/// Options of `cke price`.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PriceOptions {
    #[command(subcommand)]
    command: Option<PriceCommand>,

    /// Shapes, such as DEDICATED_COMPUTE:XS:3+web=M:3 or DISTRIBUTED:2XS:1,apiserver=S:3+M:2; several are
    /// shown side by side. Instead of the options below
    #[arg(
        value_name = "SHAPE",
        conflicts_with_all = ["topology", "flavor", "replication_factor", "components", "node_groups"]
    )]
    pub shapes: Vec<Shape>,

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
    pub components: Vec<ComponentShape>,

    /// Flavor and number of a node group's nodes, such as M:3 or web=M:3. May be repeated
    #[arg(long = "node-group", value_name = "[NAME=]FLAVOR:N")]
    pub node_groups: Vec<NodeGroupShape>,

    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
}

#[derive(Clone, Debug, Subcommand)]
enum PriceCommand {
    /// Say which shape has what is asked for and costs least
    Cheapest(CheapestOptions),
}

#[derive(Args, Clone, Debug)]
struct CheapestOptions {
    /// vCPU that the nodes have together, at least
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=cheapest::MOST.vcpus))]
    vcpus: u64,
    /// Memory that the nodes have together, at least
    #[arg(long, value_name = "GB", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=cheapest::MOST.ram_gb))]
    ram: u64,
    /// The control plane, and nodes with so much, are to be there with any one datacenter lost
    #[arg(long)]
    survive_datacenter: bool,
    /// Only of these topologies. May be repeated
    #[arg(long = "topology", value_name = "TOPOLOGY")]
    topologies: Vec<TopologyKind>,
    /// vCPU that control plane and nodes may have together
    #[arg(long, value_name = "N", default_value_t = 40)]
    quota_vcpus: u64,
    /// Memory that control plane and nodes may have together
    #[arg(long, value_name = "GB", default_value_t = 40)]
    quota_ram: u64,
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Csv,
}

impl PriceOptions {
    /// Prints the quotes.
    ///
    /// # Errors
    /// Options that no cluster can have, with the reason that its creation would be refused with.
    pub fn run(&self) -> Result<(), PriceError> {
        use std::io::Write as _;
        let text = self.text()?;
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    fn text(&self) -> Result<String, PriceError> {
        let (shapes, format) = match &self.command {
            Some(PriceCommand::Cheapest(options)) => (vec![options.find()?], options.format),
            None if self.shapes.is_empty() => (vec![self.shape()?], self.format),
            None => (self.shapes.clone(), self.format),
        };
        let mut quotes = Vec::new();
        for shape in &shapes {
            shape.check("")?;
            quotes.push(pricing::quote(shape, &RATES));
        }
        Ok(match (format, &quotes[..]) {
            (Format::Table, [quote]) if self.command.is_some() => {
                format!("{}\n{}", shapes[0], table(quote))
            }
            (Format::Table, [quote]) => table(quote),
            (Format::Table, _) => side_by_side(&shapes, &quotes),
            (Format::Json, [quote]) => json(quote)?,
            (Format::Json, _) => json(&quotes)?,
            (Format::Csv, _) => csv(&shapes, &quotes),
        })
    }

    fn shape(&self) -> Result<Shape, PriceError> {
        let (flavor, factor) = (self.flavor, Some(self.replication_factor));
        let topology = shape::topology(self.topology, flavor, factor, &self.components)?;
        Ok(Shape::new(topology, self.node_groups.clone()))
    }
}

impl CheapestOptions {
    fn find(&self) -> Result<Shape, PriceError> {
        let topologies = match self.topologies.is_empty() {
            true => TopologyKind::ALL.to_vec(),
            false => self.topologies.clone(),
        };
        let wanted = Wanted {
            capacity: Resources {
                vcpus: self.vcpus,
                ram_gb: self.ram,
            },
            survives_a_datacenter: self.survive_datacenter,
            within: Some(Resources {
                vcpus: self.quota_vcpus,
                ram_gb: self.quota_ram,
            }),
            topologies,
        };
        let found = cheapest::cheapest(&wanted, &RATES);
        found.map(|(shape, _)| shape).ok_or(PriceError::NothingFits)
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, std::io::Error> {
    let json = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
    Ok(format!("{json}\n"))
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

/// A column for each shape: what it has of each item, and what that costs a month.
fn side_by_side(shapes: &[Shape], quotes: &[Quote]) -> String {
    let mut items: Vec<(QuotedItem, Vec<Option<Side>>)> = Vec::new();
    for (column, quote) in quotes.iter().enumerate() {
        let empty = Quote {
            items: Vec::new(),
            total: Default::default(),
        };
        // Every line of the quote is new, compared with nothing.
        for ItemChange { item, after, .. } in difference(&empty, quote).items {
            let row = items
                .iter_mut()
                .find(|(known, cells)| *known == item && cells[column].is_none());
            match row {
                Some((_, cells)) => cells[column] = after,
                None => {
                    let mut cells = vec![None; quotes.len()];
                    cells[column] = after;
                    items.push((item, cells));
                }
            }
        }
    }
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (item, cells) in items {
        let cell = |side: Option<Side>| match side {
            Some(side) => {
                format!(
                    "{} x {}  {:>10}",
                    side.count,
                    side.flavor,
                    side.price.shown_monthly()
                )
            }
            None => String::from("-"),
        };
        rows.push((item.to_string(), cells.into_iter().map(cell).collect()));
    }
    let mut row = |name: &str, cell: &dyn Fn(usize) -> String| {
        rows.push((name.to_owned(), (0..quotes.len()).map(cell).collect()));
    };
    let total = |column: usize| quotes[column].total;
    row("EUR/hour", &|it| total(it).shown_hourly().to_string());
    row("EUR/month", &|it| total(it).shown_monthly().to_string());
    row("against the first", &|it| match it {
        0 => String::new(),
        _ => difference(&quotes[0], &quotes[it]).total.shown_monthly(),
    });
    row("vCPU of the quota", &|it| {
        shapes[it].resources().vcpus.to_string()
    });
    row("GB of the quota", &|it| {
        shapes[it].resources().ram_gb.to_string()
    });
    row(
        "survives a datacenter",
        &|it| match shapes[it].survives_a_datacenter() {
            true => String::from("yes"),
            false => String::from("no"),
        },
    );
    let heads: Vec<String> = shapes.iter().map(ToString::to_string).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|(_, cells)| cells[column].chars().count());
        cells
            .chain([heads[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let names = rows.iter().map(|(name, _)| name.chars().count());
    let first = names.max().unwrap_or(0);
    let mut text = String::new();
    let head = (String::from("ITEM"), heads);
    for (name, cells) in std::iter::once(&head).chain(&rows) {
        let _ = write!(text, "{name:<first$}");
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
    text.push_str("Amounts in EUR without taxes, a month of 720 hours.\n");
    text
}

/// RFC 4180, a line for each item of each shape.
fn csv(shapes: &[Shape], quotes: &[Quote]) -> String {
    let mut text = String::from("shape,item,flavor,count,eur_hour,eur_month\r\n");
    let quoted = |word: &str| match word.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", word.replace('"', "\"\"")),
        false => word.to_owned(),
    };
    for (shape, quote) in shapes.iter().zip(quotes) {
        let shape = quoted(&shape.to_string());
        for QuoteItem {
            item,
            flavor,
            count,
            price,
            ..
        } in &quote.items
        {
            let item = quoted(&item.to_string());
            let (hourly, monthly) = (price.shown_hourly(), price.shown_monthly());
            let _ = write!(
                text,
                "{shape},{item},{flavor},{count},{hourly},{monthly}\r\n"
            );
        }
        let (hourly, monthly) = (quote.total.shown_hourly(), quote.total.shown_monthly());
        let _ = write!(text, "{shape},total,,,{hourly},{monthly}\r\n");
    }
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

    /// What is printed, or why nothing is.
    fn said(arguments: &str) -> String {
        let arguments = ["price"].into_iter().chain(arguments.split_whitespace());
        match Command::try_parse_from(arguments) {
            Ok(command) => match command.options.text() {
                Ok(text) => text,
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
    fn shapes_are_shown_side_by_side() {
        expect![[r#"
            ITEM                   ALL_IN_ONE:S:1+web=M:1+M:1  DEDICATED_COMPUTE:XS:3+web=M:3
            bundle                          1 x S       64.00                               -
            node group web                  1 x M       84.00               3 x M      252.00
            node group                      1 x M       84.00                               -
            control plane                                   -              3 x XS      198.00
            EUR/hour                                   0.3222                          0.6250
            EUR/month                                  232.00                          450.00
            against the first                                                         +218.00
            vCPU of the quota                              28                              48
            GB of the quota                                44                              72
            survives a datacenter                          no                             yes
            Amounts in EUR without taxes, a month of 720 hours.
        "#]]
        .assert_eq(&said(
            "ALL_IN_ONE:S:1+web=M:1+M:1 DEDICATED_COMPUTE:XS:3+web=M:3",
        ));
    }

    #[test]
    fn prices_are_written_for_spreadsheets() {
        let text = said("DISTRIBUTED:2XS:1,apiserver=S:1+M:2 ALL_IN_ONE --format csv");
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines[0], "shape,item,flavor,count,eur_hour,eur_month");
        assert_eq!(
            lines[1],
            "\"DISTRIBUTED:2XS:1,apiserver=S:1+M:2\",apiserver,S,1,0.1333,96.00"
        );
        assert_eq!(lines[8], "ALL_IN_ONE:S:1,bundle,S,1,0.0889,64.00");
        assert_eq!(lines[9], "ALL_IN_ONE:S:1,total,,,0.0889,64.00");
        assert_eq!(lines[10..], [""]);
        let quote: serde_json::Value =
            serde_json::from_str(&said("ALL_IN_ONE --format json")).unwrap();
        assert_eq!(quote["total"]["monthly"], "64.00");
        let both = said("ALL_IN_ONE ALL_IN_ONE:M --format json");
        let both: serde_json::Value = serde_json::from_str(&both).unwrap();
        assert_eq!(both[1]["total"]["monthly"], "84.00");
    }

    #[test]
    fn the_cheapest_is_told_with_its_shape() {
        let text = said("cheapest --vcpus 4 --ram 4 --survive-datacenter");
        assert!(
            text.starts_with("DEDICATED_COMPUTE:XS:3+2XS:2\nITEM"),
            "{text}"
        );
        assert!(text.trim_end().ends_with("246.00"), "{text}");
        let check = |arguments: &str, expect: &str| {
            let said = said(arguments);
            assert!(said.contains(expect), "{arguments}: {said}");
        };
        check("cheapest --vcpus 41", "no shape");
        check(
            "cheapest --vcpus 41 --quota-vcpus 100 --quota-ram 100",
            "total",
        );
        check("cheapest --vcpus 4097", "4097");
        check("cheapest --topology distributed", "DISTRIBUTED:2XS:1");
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
        check("ALL_IN_ONE:2XS", "not available for ALL_IN_ONE");
        check("ALL_IN_ONE DISTRIBUTED:S:9", "between 1 and 5");
        check("ALL_IN_ONE --node-group M:1", "cannot be used with");
    }
}
