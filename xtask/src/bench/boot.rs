//! Figures of virtual machines that are started, installed and upgraded for it.

use std::time::Instant;

use anyhow::Result;
use image::Versions;
use qemu_tests::accel::Accelerator;
use qemu_tests::measure::{self, Measure};

use crate::bench::goals::Figure;
use crate::cluster::programs;
use crate::image::{Built, build};
use crate::project::Project;
use crate::scenarios::Machines;

/// Builds the image and measures machines that are made from it.
pub fn figures(project: &Project) -> Result<Vec<Figure>> {
    let started = Instant::now();
    let Built { image, tools, cache } =
        build(project, Versions::Locked, &|step| println!("[{:>6.1} s] {step}", started.elapsed().as_secs_f32()))?;
    let mut figures = super::sizes(&image)?;
    let machines = Machines { programs: programs(project, &tools), accelerator: Accelerator::detect(&cache, &tools)?, image };
    println!("the guests are run by {:?}", machines.accelerator);
    let context = machines.context(project, "bench-boot")?;
    let measured = measure::boot(&context);
    std::fs::remove_dir_all(&context.run)?;
    figures.extend(measured?.into_iter().map(|Measure { name, value, unit }| Figure::new(name, value, unit)));
    Ok(figures)
}
