// Package openstack tests with a real OpenStack, which scripts/openstack-lab starts
// on this machine: Nova with its fake hypervisor, whose cards are the seed's, or
// with libvirt and QEMU. Its tests have the tag openstack; cases.txt names those
// that have to pass in either of the two. scripts/test-openstack runs them.
package openstack
