// Package gpuserver holds the words of the service: what a job, a runner, a VM,
// a flavor, an image, a lease and an event are, which states they pass through,
// and how an error says whose fault it is.
//
// It imports the standard library only and does no I/O. Each stage of a job's
// way (forge, intake, access, sched, fleet, cloud, guest) is a package of its
// own under internal/ and speaks in these words.
package gpuserver
