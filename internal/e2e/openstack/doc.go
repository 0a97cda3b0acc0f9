// Package openstack tests with a real OpenStack, which scripts/openstack-lab starts
// on this machine: Nova with its fake hypervisor, whose cards are the seed's, or
// with libvirt and QEMU. Its tests have the tag openstack; cases.txt names those
// that have to pass in either of the two. scripts/test-openstack runs them.
//
// A test of a part, such as the driver, uses that part. A test of the service has
// the program itself as a process, with a configuration file, and asks it by its
// commands. What the cloud thinks of it is asked for in plain HTTP.
package openstack
