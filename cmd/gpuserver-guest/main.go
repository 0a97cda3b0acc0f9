// Command gpuserver-guest is the agent inside a VM. It is a program of its own,
// so that an image changes only when the guest's code does; "gpuserver guest" is
// the same.
package main

import (
	"os"

	"gpuserver/internal/guest"
)

func main() {
	os.Exit(guest.Main(os.Args[1:], nil, os.Stdout, os.Stderr))
}
