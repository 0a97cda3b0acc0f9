// Package crashpoint marks the places at which tests kill the process, as power
// loss would: before an effect, after it, and after the commit that notes it.
//
// In a program that was not built with the tag crashpoints it does nothing.
package crashpoint
