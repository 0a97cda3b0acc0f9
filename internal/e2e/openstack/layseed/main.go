// Command layseed lays the files of /sys of the server that this project began
// with out below a folder. scripts/openstack-lab has gpuserver read them, so that
// the laboratory's Nova offers those cards.
//
//	layseed FOLDER
package main

import (
	"fmt"
	"os"

	"gpuserver/internal/pci/pcitest"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: layseed FOLDER")
		os.Exit(2)
	}
	if err := pcitest.Lay(os.Args[1], pcitest.Seed("vfio-pci")); err != nil {
		fmt.Fprintln(os.Stderr, "layseed:", err)
		os.Exit(1)
	}
}
