// Package health decides what follows for a card from what was seen of it:
// strikes that fade, a rest, quarantine. It does no I/O.
package health
