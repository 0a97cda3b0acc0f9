// Package archtest holds the tests that keep the source in the shape that
// docs/architecture.md describes: which package may import which, which do no
// I/O, and that everything exported says what it is.
package archtest
