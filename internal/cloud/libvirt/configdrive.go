package libvirt

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"gpuserver/internal/cloud"
)

// driveFiles gives the files of a VM's config drive by path.
// Source: OpenStack Compute, "Metadata: the OpenStack format and config drives".
func driveFiles(spec cloud.Spec, uuid string, n Network, a address) (map[string][]byte, error) {
	meta := spec.Metadata
	if meta == nil {
		meta = map[string]string{}
	}
	metaData, err := json.Marshal(map[string]any{
		"uuid": uuid, "name": spec.Name, "hostname": spec.Name, "launch_index": 0, "meta": meta,
	})
	if err != nil {
		return nil, err
	}
	networkData, err := json.Marshal(guestNetwork(n, a))
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"/openstack/latest/meta_data.json":    metaData,
		"/openstack/latest/user_data":         spec.UserData,
		"/openstack/latest/network_data.json": networkData,
	}, nil
}

// guestNetwork is network_data.json. The address is told as it is, so that no
// guest waits for DHCP; one that asks by DHCP is told the same.
func guestNetwork(n Network, a address) map[string]any {
	type object = map[string]any
	mask := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), n.CIDR.Bits()).Masked().Addr()
	networks := []object{{
		"id": "network0", "link": "port0", "type": "ipv4", "ip_address": a.ip.String(), "netmask": mask.String(),
		"routes": []object{{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": n.Gateway().String()}},
	}}
	if n.CIDR6.IsValid() {
		networks = append(networks, object{"id": "network1", "link": "port0", "type": "ipv6_slaac"})
	}
	return object{
		"links":    []object{{"id": "port0", "type": "phy", "ethernet_mac_address": a.mac.String(), "mtu": n.MTU}},
		"networks": networks,
		"services": []object{{"type": "dns", "address": n.Gateway().String()}},
	}
}

// writeDrive makes an ISO 9660 image with label config-2. It holds secrets: only
// its owner and QEMU's user, to whom libvirt gives it, may read it.
func writeDrive(path string, files map[string][]byte) (err error) {
	const block, slack = 2048, 1 << 20
	size := int64(slack)
	for _, content := range files {
		size += (int64(len(content))/block + 1) * block
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	// The library gathers the files in a folder first: in the VM's own, where no
	// crash leaves secrets behind.
	gather := path + ".d"
	if err := os.Mkdir(gather, 0o700); err != nil {
		return err
	}
	defer func() {
		if e := os.RemoveAll(gather); err == nil {
			err = e
		}
	}()
	iso, err := iso9660.Create(file.New(f, false), size, 0, block, gather)
	if err != nil {
		return err
	}
	if err := iso.Mkdir("/openstack/latest"); err != nil {
		return err
	}
	for name, content := range files {
		if err := addFile(iso, name, content); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: "config-2"})
}

func addFile(iso *iso9660.FileSystem, name string, content []byte) error {
	w, err := iso.OpenFile(name, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return err
	}
	defer w.Close()
	_, err = w.Write(content)
	return err
}
