// Package vfio tests GPU passthrough with real libvirt, QEMU and VFIO, on a
// machine that scripts/vfio-lab emulates: six cards in the seed's four IOMMU
// groups. Its tests have the tag vfio and run inside that machine; cases.txt
// names those that have to pass.
package vfio
