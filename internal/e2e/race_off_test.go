//go:build !race

package e2e

// raceFlags builds the program as the tests were built.
var raceFlags []string
