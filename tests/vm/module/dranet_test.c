// SPDX-License-Identifier: GPL-2.0
/*
 * RDMA devices for tests: they answer every question and pass no data.
 *
 * Software drivers (rxe, siw) cannot be moved to another network namespace: the kernel asks for the operation
 * disassociate_ucontext, which only drivers of hardware have. Devices of this module have it. Put on an interface that
 * has a parent device (a virtual function), such a device looks like that of a real NIC: a child of the same PCI
 * function, beside the interface. All is done by writing to parameters in /sys/module/dranet_test/parameters:
 *
 *   add     "NAME INTERFACE roce"   on an interface of the writer's namespace, with its GIDs
 *           "NAME INTERFACE iwarp"  the same, as iWARP
 *           "NAME ADDRESS ib"       on a PCI function, as an InfiniBand port without interface
 *           "NAME - ib 2"           on nothing; with two ports
 *   remove  "NAME"
 *   state   "NAME 4"                the port's state by the InfiniBand specification's number, with its event
 *           "NAME 4 2"              that of its second port
 *   slow    "2000"                  milliseconds that devices take from now on to come up, also after a move
 *   movable "NAME"                  give another driver's device (rxe) the missing operation, doing nothing
 *
 * It is a PCI driver too, for functions that are given to it by name (driver_override): those have no interface.
 */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/nsproxy.h>
#include <linux/pci.h>
#include <linux/rtnetlink.h>
#include <rdma/ib_verbs.h>
#include <rdma/ib_mad.h>

struct test_dev {
	struct ib_device ibdev;
	struct list_head entry;
	struct net_device *netdev; /* compared, never followed once it may be gone */
	struct device *parent;
	enum { ROCE, IWARP, IB } layer;
	int state[2]; /* of each port */
};

struct test_mr {
	struct ib_mr ibmr;
};

/* The kernel makes these itself and wants to know their sizes. */
struct test_ah {
	struct ib_ah ibah;
};

struct test_cq {
	struct ib_cq ibcq;
};

struct test_pd {
	struct ib_pd ibpd;
};

struct test_qp {
	struct ib_qp ibqp;
};

struct test_uctx {
	struct ib_ucontext ibuc;
};

static LIST_HEAD(test_devs);
static DEFINE_MUTEX(test_lock);
static atomic_t test_numbers = ATOMIC_INIT(2);
static uint slow;

static struct test_dev *to_test(struct ib_device *ibdev)
{
	return container_of(ibdev, struct test_dev, ibdev);
}

static int test_query_device(struct ib_device *ibdev, struct ib_device_attr *attr, struct ib_udata *udata)
{
	attr->sys_image_guid = ibdev->node_guid;
	attr->max_mr_size = ~0ULL;
	attr->page_size_cap = PAGE_SIZE;
	attr->max_qp = attr->max_cq = attr->max_pd = attr->max_mr = 1024;
	attr->max_qp_wr = attr->max_cqe = 4096;
	attr->max_send_sge = attr->max_recv_sge = 16;
	attr->max_ah = 1024;
	attr->max_pkeys = 1;
	return 0;
}

static int test_query_port(struct ib_device *ibdev, u32 port, struct ib_port_attr *attr)
{
	struct test_dev *dev = to_test(ibdev);

	attr->state = dev->state[port - 1];
	attr->phys_state = attr->state == IB_PORT_ACTIVE ? IB_PORT_PHYS_STATE_LINK_UP : IB_PORT_PHYS_STATE_DISABLED;
	attr->max_mtu = attr->active_mtu = IB_MTU_4096;
	attr->gid_tbl_len = dev->layer == ROCE ? 8 : 1;
	attr->pkey_tbl_len = 1;
	attr->max_msg_sz = 1 << 30;
	attr->active_width = IB_WIDTH_4X;
	attr->active_speed = IB_SPEED_EDR;
	attr->max_vl_num = 1;
	attr->lid = dev->layer == IB ? port : 0;
	return 0;
}

static int test_get_port_immutable(struct ib_device *ibdev, u32 port, struct ib_port_immutable *immutable)
{
	static const u32 caps[] = {
		[ROCE] = RDMA_CORE_PORT_IBA_ROCE_UDP_ENCAP,
		[IWARP] = RDMA_CORE_PORT_IWARP,
		[IB] = RDMA_CORE_PORT_IBA_IB,
	};
	struct test_dev *dev = to_test(ibdev);

	immutable->core_cap_flags = caps[dev->layer];
	immutable->gid_tbl_len = dev->layer == ROCE ? 8 : 1;
	immutable->pkey_tbl_len = 1;
	immutable->max_mad_size = dev->layer == IWARP ? 0 : IB_MGMT_MAD_SIZE;
	return 0;
}

static enum rdma_link_layer test_get_link_layer(struct ib_device *ibdev, u32 port)
{
	return to_test(ibdev)->layer == IB ? IB_LINK_LAYER_INFINIBAND : IB_LINK_LAYER_ETHERNET;
}

static void test_get_fw(struct ib_device *ibdev, char *text)
{
	strscpy(text, "1.2.3", IB_FW_VERSION_NAME_MAX);
}

static int test_query_gid(struct ib_device *ibdev, u32 port, int index, union ib_gid *gid)
{
	gid->global.subnet_prefix = cpu_to_be64(0xfe80000000000000ULL);
	/* The GUID of a port is not that of its device. */
	gid->global.interface_id = ibdev->node_guid | cpu_to_be64((u64)port << 32);
	return 0;
}

static int test_gid(const struct ib_gid_attr *attr, void **context)
{
	return 0;
}

static int test_query_pkey(struct ib_device *ibdev, u32 port, u16 index, u16 *pkey)
{
	*pkey = 0xffff;
	return index ? -EINVAL : 0;
}

static int test_alloc_ucontext(struct ib_ucontext *context, struct ib_udata *udata)
{
	return 0;
}

static void test_ucontext(struct ib_ucontext *context)
{
}

static int test_enable(struct ib_device *ibdev)
{
	/* Whoever is killed meanwhile dies when the move has been done. */
	msleep(slow);
	return 0;
}

static int test_any_pd(struct ib_pd *pd, struct ib_udata *udata)
{
	return 0;
}

static int test_create_ah(struct ib_ah *ah, struct rdma_ah_init_attr *attr, struct ib_udata *udata)
{
	return 0;
}

static int test_destroy_ah(struct ib_ah *ah, u32 flags)
{
	return 0;
}

static int test_create_cq(struct ib_cq *cq, const struct ib_cq_init_attr *attr, struct uverbs_attr_bundle *attrs)
{
	cq->cqe = attr->cqe;
	return 0;
}

static int test_destroy_cq(struct ib_cq *cq, struct ib_udata *udata)
{
	return 0;
}

static int test_poll_cq(struct ib_cq *cq, int entries, struct ib_wc *wc)
{
	return 0;
}

static int test_notify_cq(struct ib_cq *cq, enum ib_cq_notify_flags flags)
{
	return 0;
}

static int test_create_qp(struct ib_qp *qp, struct ib_qp_init_attr *attr, struct ib_udata *udata)
{
	qp->qp_num = attr->qp_type == IB_QPT_SMI ? 0 : attr->qp_type == IB_QPT_GSI ? 1 : atomic_inc_return(&test_numbers);
	return 0;
}

static int test_modify_qp(struct ib_qp *qp, struct ib_qp_attr *attr, int mask, struct ib_udata *udata)
{
	return 0;
}

static int test_destroy_qp(struct ib_qp *qp, struct ib_udata *udata)
{
	return 0;
}

static int test_post_send(struct ib_qp *qp, const struct ib_send_wr *wr, const struct ib_send_wr **bad)
{
	/* What is never sent would never end either. */
	*bad = wr;
	return -EIO;
}

static int test_post_recv(struct ib_qp *qp, const struct ib_recv_wr *wr, const struct ib_recv_wr **bad)
{
	return 0;
}

static struct ib_mr *test_get_mr(void)
{
	struct test_mr *mr = kzalloc(sizeof(*mr), GFP_KERNEL);

	return mr ? &mr->ibmr : ERR_PTR(-ENOMEM);
}

static struct ib_mr *test_get_dma_mr(struct ib_pd *pd, int flags)
{
	return test_get_mr();
}

static struct ib_mr *test_reg_user_mr(struct ib_pd *pd, u64 start, u64 length, u64 address, int flags,
				      struct ib_udata *udata)
{
	return test_get_mr();
}

static int test_dereg_mr(struct ib_mr *mr, struct ib_udata *udata)
{
	kfree(container_of(mr, struct test_mr, ibmr));
	return 0;
}

static int test_mcast(struct ib_qp *qp, union ib_gid *gid, u16 lid)
{
	return 0;
}

static void test_dealloc(struct ib_device *ibdev)
{
	struct test_dev *dev = to_test(ibdev);

	mutex_lock(&test_lock);
	list_del_init(&dev->entry);
	mutex_unlock(&test_lock);
}

static const struct ib_device_ops test_ops = {
	.owner = THIS_MODULE,
	.driver_id = RDMA_DRIVER_UNKNOWN,
	.uverbs_abi_ver = 1,
	.uverbs_no_driver_id_binding = 1,
	.query_device = test_query_device,
	.query_port = test_query_port,
	.get_port_immutable = test_get_port_immutable,
	.get_link_layer = test_get_link_layer,
	.get_dev_fw_str = test_get_fw,
	.query_gid = test_query_gid,
	.add_gid = test_gid,
	.del_gid = test_gid,
	.query_pkey = test_query_pkey,
	.alloc_ucontext = test_alloc_ucontext,
	.dealloc_ucontext = test_ucontext,
	.disassociate_ucontext = test_ucontext,
	.alloc_pd = test_any_pd,
	.dealloc_pd = test_any_pd,
	.create_ah = test_create_ah,
	.create_user_ah = test_create_ah,
	.destroy_ah = test_destroy_ah,
	.create_cq = test_create_cq,
	.destroy_cq = test_destroy_cq,
	.poll_cq = test_poll_cq,
	.req_notify_cq = test_notify_cq,
	.create_qp = test_create_qp,
	.modify_qp = test_modify_qp,
	.destroy_qp = test_destroy_qp,
	.post_send = test_post_send,
	.post_recv = test_post_recv,
	.get_dma_mr = test_get_dma_mr,
	.reg_user_mr = test_reg_user_mr,
	.dereg_mr = test_dereg_mr,
	.attach_mcast = test_mcast,
	.detach_mcast = test_mcast,
	.dealloc_driver = test_dealloc,
	.enable_driver = test_enable,
	INIT_RDMA_OBJ_SIZE(ib_ah, test_ah, ibah),
	INIT_RDMA_OBJ_SIZE(ib_cq, test_cq, ibcq),
	INIT_RDMA_OBJ_SIZE(ib_pd, test_pd, ibpd),
	INIT_RDMA_OBJ_SIZE(ib_qp, test_qp, ibqp),
	INIT_RDMA_OBJ_SIZE(ib_ucontext, test_uctx, ibuc),
};

static struct device *find_parent(const char *where, bool ib, struct net_device **netdev)
{
	unsigned int domain, bus, slot, function;
	struct pci_dev *pdev;

	*netdev = NULL;
	if (!strcmp(where, "-"))
		return NULL;
	if (ib && sscanf(where, "%x:%x:%x.%x", &domain, &bus, &slot, &function) == 4) {
		pdev = pci_get_domain_bus_and_slot(domain, bus, PCI_DEVFN(slot, function));
		return pdev ? &pdev->dev : ERR_PTR(-ENODEV);
	}
	*netdev = dev_get_by_name(current->nsproxy->net_ns, where);
	if (!*netdev)
		return ERR_PTR(-ENODEV);
	return (*netdev)->dev.parent ? get_device((*netdev)->dev.parent) : NULL;
}

static int test_add(const char *text, const struct kernel_param *param)
{
	static atomic_t guids = ATOMIC_INIT(0);
	char name[64], where[64], layer[8];
	struct net_device *netdev;
	struct device *parent;
	unsigned int ports = 1;
	struct test_dev *dev;
	int error;

	if (sscanf(text, "%63s %63s %7s %u", name, where, layer, &ports) < 3 || !ports || ports > ARRAY_SIZE(dev->state))
		return -EINVAL;
	parent = find_parent(where, !strcmp(layer, "ib"), &netdev);
	if (IS_ERR(parent))
		return PTR_ERR(parent);
	dev = ib_alloc_device(test_dev, ibdev);
	error = -ENOMEM;
	if (!dev)
		goto put;
	INIT_LIST_HEAD(&dev->entry);
	dev->netdev = netdev;
	dev->parent = parent;
	dev->state[0] = dev->state[1] = IB_PORT_ACTIVE;
	dev->layer = !strcmp(layer, "ib") ? IB : !strcmp(layer, "iwarp") ? IWARP : ROCE;
	dev->ibdev.node_type = dev->layer == IWARP ? RDMA_NODE_RNIC : RDMA_NODE_IB_CA;
	dev->ibdev.phys_port_cnt = ports;
	dev->ibdev.num_comp_vectors = 1;
	dev->ibdev.local_dma_lkey = 1;
	dev->ibdev.dev.parent = parent;
	dev->ibdev.node_guid = cpu_to_be64(0x0200000000000000ULL + atomic_inc_return(&guids));
	strscpy(dev->ibdev.node_desc, "test", sizeof(dev->ibdev.node_desc));
	ib_set_device_ops(&dev->ibdev, &test_ops);
	if (netdev) {
		error = ib_device_set_netdev(&dev->ibdev, netdev, 1);
		if (error)
			goto dealloc;
	}
	mutex_lock(&test_lock);
	list_add(&dev->entry, &test_devs);
	mutex_unlock(&test_lock);
	error = ib_register_device(&dev->ibdev, name, NULL);
	if (!error)
		goto put; /* the kernel frees it when it is unregistered */
	test_dealloc(&dev->ibdev);
dealloc:
	ib_dealloc_device(&dev->ibdev);
put:
	if (netdev)
		dev_put(netdev);
	put_device(parent);
	return error;
}

static struct ib_device *by_name(const char *text)
{
	char name[64];

	return sscanf(text, "%63s", name) == 1 ? ib_device_get_by_name(name, RDMA_DRIVER_UNKNOWN) : NULL;
}

static int test_remove(const char *text, const struct kernel_param *param)
{
	struct ib_device *ibdev = by_name(text);

	if (!ibdev || ibdev->ops.owner != THIS_MODULE) {
		if (ibdev)
			ib_device_put(ibdev);
		return -ENODEV;
	}
	ib_unregister_device_and_put(ibdev);
	return 0;
}

static int test_state(const char *text, const struct kernel_param *param)
{
	struct ib_event event = { .element.port_num = 1 };
	struct ib_device *ibdev;
	char name[64];
	int state;

	if (sscanf(text, "%63s %d %u", name, &state, &event.element.port_num) < 2)
		return -EINVAL;
	ibdev = by_name(name);
	if (!ibdev)
		return -ENODEV;
	if (ibdev->ops.owner == THIS_MODULE && rdma_is_port_valid(ibdev, event.element.port_num)) {
		to_test(ibdev)->state[event.element.port_num - 1] = state;
		event.device = ibdev;
		event.event = state == IB_PORT_ACTIVE ? IB_EVENT_PORT_ACTIVE : IB_EVENT_PORT_ERR;
		ib_dispatch_event(&event);
	}
	ib_device_put(ibdev);
	return 0;
}

static int test_movable(const char *text, const struct kernel_param *param)
{
	struct ib_device *ibdev = by_name(text);

	if (!ibdev)
		return -ENODEV;
	ibdev->ops.disassociate_ucontext = test_ucontext;
	ib_device_put(ibdev);
	return 0;
}

static const struct kernel_param_ops add_ops = { .set = test_add };
static const struct kernel_param_ops remove_ops = { .set = test_remove };
static const struct kernel_param_ops state_ops = { .set = test_state };
static const struct kernel_param_ops movable_ops = { .set = test_movable };

module_param_cb(add, &add_ops, NULL, 0200);
module_param_cb(remove, &remove_ops, NULL, 0200);
module_param_cb(state, &state_ops, NULL, 0200);
module_param_cb(movable, &movable_ops, NULL, 0200);
module_param(slow, uint, 0600);

static int test_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return 0;
}

/* No function is its own but those that it is given by name. */
static const struct pci_device_id no_functions[] = { {} };

static struct pci_driver test_driver = {
	.name = "dranet_test",
	.id_table = no_functions,
	.probe = test_probe,
};

/* The RDMA device of a NIC goes before its driver does: its folder in sysfs lies below the PCI function's. */
static int on_pci(struct notifier_block *block, unsigned long action, void *data)
{
	struct test_dev *dev, *found;

	if (action != BUS_NOTIFY_UNBIND_DRIVER)
		return NOTIFY_DONE;
	do {
		found = NULL;
		mutex_lock(&test_lock);
		list_for_each_entry(dev, &test_devs, entry)
			if (dev->parent == data && ib_device_try_get(&dev->ibdev)) {
				found = dev;
				break;
			}
		mutex_unlock(&test_lock);
		if (found)
			ib_unregister_device_and_put(&found->ibdev);
	} while (found);
	return NOTIFY_OK;
}

static int on_netdev(struct notifier_block *block, unsigned long action, void *data)
{
	struct net_device *netdev = netdev_notifier_info_to_dev(data);
	struct test_dev *dev;

	/* A move to another namespace unregisters too, but does not end the interface. */
	if (action != NETDEV_UNREGISTER || netdev->reg_state != NETREG_UNREGISTERING || netdev->dev.parent)
		return NOTIFY_DONE;
	mutex_lock(&test_lock);
	list_for_each_entry(dev, &test_devs, entry)
		if (dev->netdev == netdev && ib_device_try_get(&dev->ibdev)) {
			ib_unregister_device_queued(&dev->ibdev);
			ib_device_put(&dev->ibdev);
		}
	mutex_unlock(&test_lock);
	return NOTIFY_OK;
}

static struct notifier_block pci_block = { .notifier_call = on_pci };
static struct notifier_block netdev_block = { .notifier_call = on_netdev };

static int __init test_init(void)
{
	int error = bus_register_notifier(&pci_bus_type, &pci_block);

	if (error)
		return error;
	error = register_netdevice_notifier(&netdev_block);
	if (error)
		goto bus;
	error = pci_register_driver(&test_driver);
	if (!error)
		return 0;
	unregister_netdevice_notifier(&netdev_block);
bus:
	bus_unregister_notifier(&pci_bus_type, &pci_block);
	return error;
}

module_init(test_init);
/* Without an exit it cannot be unloaded: the operation given to other drivers' devices must stay where it is. */

MODULE_DESCRIPTION("RDMA devices for tests");
MODULE_LICENSE("GPL");
