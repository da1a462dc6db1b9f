//! CPU kernels of libtorch's operators `convolution_overrideable` and `convolution_backward_overrideable`. libtorch
//! defines their gradients but has no kernels. They are registered through its stable C interface
//! (torch/csrc/stable/c/shim.h).
#![allow(unsafe_code, reason = "C functions of libtorch 2.11, and the values of its tensors")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use d2o_winograd::Task;
use tch::{Device, Kind, Tensor};

/// A value of an operator's stack: an integer, a flag, or a pointer to an object that the receiver owns.
type Slot = u64;
type Kernel = extern "C" fn(*mut Slot, u64, u64);

/// Version of the representation of values, as TORCH_ABI_VERSION.
const VERSION: u64 = (2 << 56) | (11 << 48);

unsafe extern "C" {
    fn aoti_torch_library_init_impl(
        namespace: *const c_char,
        key: *const c_char,
        file: *const c_char,
        line: u32,
        library: *mut *mut c_void,
    ) -> c_int;
    fn torch_library_impl(library: *mut c_void, name: *const c_char, kernel: Kernel, version: u64) -> c_int;
    fn torch_list_size(list: *mut c_void, size: *mut usize) -> c_int;
    fn torch_list_get_item(list: *mut c_void, index: usize, item: *mut Slot) -> c_int;
    fn torch_delete_list(list: *mut c_void) -> c_int;
    fn torch_parallel_for(
        begin: i64,
        end: i64,
        grain: i64,
        run: extern "C" fn(i64, i64, *mut c_void),
        context: *mut c_void,
    ) -> c_int;
    #[link_name = "_ZdlPv"]
    fn operator_delete(object: *mut c_void);
}

/// Output from input, weights, bias and padding.
type Forward = fn(&Tensor, &Tensor, Option<&Tensor>, [i64; 2]) -> Tensor;
/// Gradients of input, weights and bias, each if its flag is set, from the output gradient, input, weights and padding.
type Backward = fn(&Tensor, &Tensor, &Tensor, [i64; 2], [bool; 3]) -> [Option<Tensor>; 3];

static KERNELS: OnceLock<(Forward, Backward)> = OnceLock::new();

/// Registers the CPU kernels with libtorch, once per process. They require stride and dilation 1, one group and no
/// transposition.
///
/// # Panics
/// If libtorch refuses the kernels; libtorch prints the reason.
pub(super) fn register(kernels: (Forward, Backward)) {
    KERNELS.get_or_init(|| {
        let (namespace, key, file) = (c"aten", c"CPU", c"d2o");
        let mut library = std::ptr::null_mut();
        // SAFETY: strings and a pointer to write to. The library is never freed, so the kernels stay registered.
        let code = unsafe {
            aoti_torch_library_init_impl(namespace.as_ptr(), key.as_ptr(), file.as_ptr(), 0, &raw mut library)
        };
        assert_eq!(code, 0, "libtorch refuses a library of kernels");
        let named: [(&CStr, Kernel); 2] =
            [(c"convolution_overrideable", forward), (c"convolution_backward_overrideable", backward)];
        for (name, kernel) in named {
            // SAFETY: the library was created above; the kernels follow the schemas of the operators.
            let code = unsafe { torch_library_impl(library, name.as_ptr(), kernel, VERSION) };
            assert_eq!(code, 0, "libtorch refuses a kernel");
        }
        kernels
    });
}

fn kernels() -> &'static (Forward, Backward) {
    KERNELS.get().expect("registered before they are called")
}

/// The kernel of `convolution_overrideable(input, weight, bias?, stride[], padding[], dilation[], transposed, output_padding[], groups)`. A panic ends the process.
extern "C" fn forward(stack: *mut Slot, count: u64, _: u64) {
    assert_eq!(count, 9, "arguments of convolution_overrideable");
    // SAFETY: the stack has the nine arguments of the schema, which belong to this function, and room for the result.
    let stack = unsafe { std::slice::from_raw_parts_mut(stack, 9) };
    let (input, weight, bias) = (tensor(stack[0]), tensor(stack[1]), optional(stack[2]));
    let [stride, padding, dilation, _] = [3, 4, 5, 7].map(|i| list(stack[i]));
    let plain = stride == [1, 1] && dilation == [1, 1] && stack[6] == 0 && stack[8] == 1;
    assert!(plain, "a convolution that its caller should have left to libtorch");
    stack[0] = slot((kernels().0)(&input, &weight, bias.as_ref(), [padding[0], padding[1]]));
}

/// The kernel of `convolution_backward_overrideable(grad_output, input, weight, stride[], padding[], dilation[], transposed, output_padding[], groups, output_mask)`.
extern "C" fn backward(stack: *mut Slot, count: u64, _: u64) {
    assert_eq!(count, 10, "arguments of convolution_backward_overrideable");
    // SAFETY: as in `forward`; the three results replace arguments.
    let stack = unsafe { std::slice::from_raw_parts_mut(stack, 10) };
    let [gradient, input, weight] = [0, 1, 2].map(|i| tensor(stack[i]));
    let [_, padding, _, _, mask] = [3, 4, 5, 7, 9].map(|i| list(stack[i]));
    let mask = std::array::from_fn(|i| mask[i] != 0);
    let gradients = (kernels().1)(&gradient, &input, &weight, [padding[0], padding[1]], mask);
    for (to, gradient) in stack.iter_mut().zip(gradients) {
        // A tensor without values stands for a gradient that was not requested.
        *to = slot(gradient.unwrap_or_else(Tensor::new));
    }
}

/// The tensor of a slot. The caller may read a slot only once.
fn tensor(slot: Slot) -> Tensor {
    // SAFETY: a pointer to an at::Tensor on the heap that the receiver owns, which is the representation of tch.
    unsafe { Tensor::from_ptr((slot as *mut c_void).cast()) }
}

fn optional(slot: Slot) -> Option<Tensor> {
    let inner = slot as *mut Slot;
    if inner.is_null() {
        return None;
    }
    // SAFETY: a pointer from operator new to a slot, both owned by the receiver.
    let value = unsafe { *inner };
    unsafe { operator_delete(inner.cast()) };
    Some(tensor(value))
}

/// The slot of a result. libtorch becomes its owner.
fn slot(tensor: Tensor) -> Slot {
    let mut tensor = std::mem::ManuallyDrop::new(tensor);
    tensor.as_mut_ptr() as Slot
}

/// The items of a list of integers or flags. Frees the list.
fn list(slot: Slot) -> Vec<i64> {
    let list = slot as *mut c_void;
    let mut size = 0;
    // SAFETY: a list that the receiver owns, until `torch_delete_list`.
    let code = unsafe { torch_list_size(list, &raw mut size) };
    assert_eq!(code, 0, "a list of libtorch");
    let items = (0..size).map(|index| {
        let mut item: Slot = 0;
        // SAFETY: the index is below `size`.
        let code = unsafe { torch_list_get_item(list, index, &raw mut item) };
        assert_eq!(code, 0, "an item of a list of libtorch");
        item.cast_signed()
    });
    let items = items.collect();
    // SAFETY: nothing refers to the list after this.
    let code = unsafe { torch_delete_list(list) };
    assert_eq!(code, 0, "a list of libtorch");
    items
}

/// Calls `task` with each index below `tasks` on libtorch's threads. Each thread gets a range of indices.
pub(super) fn parallel(tasks: usize, task: &Task<'_>) -> Result<(), std::convert::Infallible> {
    extern "C" fn run(begin: i64, end: i64, context: *mut c_void) {
        // SAFETY: a pointer to the reference below, which outlives the call; tasks may run on several threads.
        let task = unsafe { *context.cast::<&Task<'_>>() };
        (begin..end).for_each(|i| task(usize::try_from(i).unwrap_or_default()));
    }
    let context: *const &Task<'_> = &raw const task;
    // SAFETY: libtorch returns when all calls of `run` have returned.
    let code =
        unsafe { torch_parallel_for(0, i64::try_from(tasks).unwrap_or(i64::MAX), 1, run, context.cast_mut().cast()) };
    assert_eq!(code, 0, "libtorch's threads");
    Ok(())
}

/// Whether [`values`] can read `tensor` once it is contiguous.
pub(super) fn has_values(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.kind() == Kind::Float
}

fn assert_values(tensor: &Tensor) {
    assert!(has_values(tensor) && tensor.is_contiguous(), "a contiguous tensor of f32 on the CPU");
}

/// The values of a contiguous tensor of f32 on the CPU, row-major.
pub(super) fn values(tensor: &Tensor) -> &[f32] {
    assert_values(tensor);
    if tensor.numel() == 0 {
        return &[];
    }
    // SAFETY: the storage lives as long as the tensor, and libtorch writes to no argument while a kernel runs.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// Mutable values of a contiguous tensor of f32 on the CPU that was just created, row-major.
pub(super) fn values_mut(tensor: &mut Tensor) -> &mut [f32] {
    assert_values(tensor);
    if tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as in `values`; nothing else refers to the storage yet.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}
