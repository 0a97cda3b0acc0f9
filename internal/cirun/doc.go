// Package cirun reads the files of the hosted service Cirun (.cirun.yml,
// .cirun.global.yml and .access.yml) unchanged, says what is wrong in them,
// finds the runners that serve a job's labels and maps their names to ours.
//
// These files belong to other people, so they are read leniently: what is not
// understood becomes a Finding, and one bad entry disables only itself. A
// policy that is not understood grants nothing. The package does no I/O, takes
// bounded input and never panics on it.
//
// Source: https://docs.cirun.io/reference/yaml and its neighbours.
package cirun
